"""Public data sets and our own files into records."""

from .records import read_preferences, read_prompts

__all__ = ["read_preferences", "read_prompts"]
