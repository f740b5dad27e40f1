"""Named protocols over judgements: one number each, with what must stand beside it."""

from .comparison import Comparison, compare
from .judgements import Judgement, Mode, Place, from_row, gap, read_judgements, to_row, verdict
from .judges import Judge, TokenCount, counting, critic_of, describe
from .named import PROTOCOLS, Credit, Protocol, find_protocol
from .published import published_table
from .results import Result, evaluate, markdown, result_from_json
from .ties import Ties, TieThreshold, fit_ties

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "Credit",
    "Judge",
    "Judgement",
    "Mode",
    "Place",
    "Protocol",
    "Result",
    "TieThreshold",
    "Ties",
    "TokenCount",
    "compare",
    "counting",
    "critic_of",
    "describe",
    "evaluate",
    "find_protocol",
    "fit_ties",
    "from_row",
    "gap",
    "markdown",
    "published_table",
    "read_judgements",
    "result_from_json",
    "to_row",
    "verdict",
]
