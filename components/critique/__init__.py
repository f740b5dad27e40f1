"""What a critique is: aspects and rubrics, and the one registry of formats."""

from .formats import CritiqueFormat, check_fingerprint, quote_request, save_fingerprint, swap_pair
from .parsing import parse, parse_pair
from .rubric import Aspect, Rubric, load_rubric

__all__ = [
    "Aspect",
    "CritiqueFormat",
    "Rubric",
    "check_fingerprint",
    "load_rubric",
    "parse",
    "parse_pair",
    "quote_request",
    "save_fingerprint",
    "swap_pair",
]
