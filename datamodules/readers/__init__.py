"""Public data sets and our own files into records."""

from .files import Files, HubFiles, LocalFiles
from .records import iter_preferences, read_preferences, read_prompts
from .sets import CONVERSATION_SETS, PREFERENCE_SETS, PROMPT_SETS, ConversationSet, PreferenceSet, PromptSet

__all__ = [
    "CONVERSATION_SETS",
    "PREFERENCE_SETS",
    "PROMPT_SETS",
    "ConversationSet",
    "Files",
    "HubFiles",
    "LocalFiles",
    "PreferenceSet",
    "PromptSet",
    "iter_preferences",
    "read_preferences",
    "read_prompts",
]
