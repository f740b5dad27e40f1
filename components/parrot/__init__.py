"""PARROT: recovering rationales from preference pairs."""

from .ledger import Job, Ledger
from .stages import Outcome, ParrotOptions, rationalize, summarise

__all__ = ["Job", "Ledger", "Outcome", "ParrotOptions", "rationalize", "summarise"]
