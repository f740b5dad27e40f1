"""How to ask a vision-language model."""

from .base import ChatModel, ChatReply, ChatRequest, Place, Weights
from .cached_chat import CachedChat
from .openai_chat import OpenAIChat
from .transformers_chat import TransformersChat
from .vllm_chat import VLLMChat

__all__ = [
    "CachedChat",
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "OpenAIChat",
    "Place",
    "TransformersChat",
    "VLLMChat",
    "Weights",
]
