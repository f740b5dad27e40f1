"""PARROT: recovering rationales from preference pairs."""

from .ledger import Job, Ledger, read_ledgers
from .locks import FileInUseError, FolderInUseError, RunLock, new_run
from .options import ParrotOptions, Price, ScreenOptions
from .outcomes import Outcome, merged, write_rationales
from .stages import rationalize

__all__ = [
    "FileInUseError",
    "FolderInUseError",
    "Job",
    "Ledger",
    "Outcome",
    "ParrotOptions",
    "Price",
    "RunLock",
    "ScreenOptions",
    "merged",
    "new_run",
    "rationalize",
    "read_ledgers",
    "write_rationales",
]
