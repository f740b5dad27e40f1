"""PARROT: recovering rationales from preference pairs."""

from .ledger import Job, Ledger, read_ledgers
from .options import ParrotOptions, Price, ScreenOptions
from .outcomes import Outcome, merged, write_rationales
from .stages import rationalize

__all__ = [
    "Job",
    "Ledger",
    "Outcome",
    "ParrotOptions",
    "Price",
    "ScreenOptions",
    "merged",
    "rationalize",
    "read_ledgers",
    "write_rationales",
]
