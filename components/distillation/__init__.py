"""Learning from supervised rows without wasted work: plain torch and transformers."""

from .answers import AnswerLoss
from .loss import summed_cross_entropy
from .pictures import FeatureStore, picture_key
from .rows import Row, answer_tokens, encode_rows

__all__ = ["AnswerLoss", "FeatureStore", "Row", "answer_tokens", "encode_rows", "picture_key", "summed_cross_entropy"]
