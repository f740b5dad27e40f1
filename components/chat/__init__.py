"""How to ask a vision-language model."""

from .base import ChatModel, ChatReply, ChatRequest
from .openai_chat import OpenAIChat
from .transformers_chat import TransformersChat

__all__ = ["ChatModel", "ChatReply", "ChatRequest", "OpenAIChat", "TransformersChat"]
