"""Public data sets and our own files into records."""

from .files import Files, HubFiles, LocalFiles
from .records import iter_preferences, read_preferences, read_prompts
from .sets import PREFERENCE_SETS, PROMPT_SETS, PreferenceSet, PromptSet

__all__ = [
    "PREFERENCE_SETS",
    "PROMPT_SETS",
    "Files",
    "HubFiles",
    "LocalFiles",
    "PreferenceSet",
    "PromptSet",
    "iter_preferences",
    "read_preferences",
    "read_prompts",
]
