"""torchmetrics classes for judges, and the intervals and fits that go beside them; ``docs/metrics.md`` lists them."""

from .accuracy import PairAccuracy, TieAccuracy, fit_tie_threshold
from .agreement import KendallTauB, OrderConsistency
from .calibration import PreferenceCalibration, ReliabilityBins, fit_temperature, reliability_bins
from .groups import group_centred, group_ids, group_index, group_sums
from .intervals import (
    clustered_bootstrap,
    detectable_difference,
    mcnemar,
    paired_bootstrap,
    paired_power,
    resampled_interval,
    wilson_interval,
    within_group_correlation_interval,
)
from .rationales import GroundingGain, RationaleSufficiency
from .resolution import DuplicateNoise, WithinGroupResolution

__all__ = [
    "DuplicateNoise",
    "GroundingGain",
    "KendallTauB",
    "OrderConsistency",
    "PairAccuracy",
    "PreferenceCalibration",
    "RationaleSufficiency",
    "ReliabilityBins",
    "TieAccuracy",
    "WithinGroupResolution",
    "clustered_bootstrap",
    "detectable_difference",
    "fit_temperature",
    "fit_tie_threshold",
    "group_centred",
    "group_ids",
    "group_index",
    "group_sums",
    "mcnemar",
    "paired_bootstrap",
    "paired_power",
    "reliability_bins",
    "resampled_interval",
    "wilson_interval",
    "within_group_correlation_interval",
]
