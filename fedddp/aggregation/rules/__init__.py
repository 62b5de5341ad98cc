"""Robust aggregation rules, one paper per file. A rule's dataclass is its configuration section."""

from .base import Combination, Coordinatewise, Rule, summed
from .clipping import CenteredClipping, NormBound
from .coordinatewise import Median, TrimmedMean, WeightedMean
from .geometric_median import GeometricMedian
from .krum import Krum, MultiKrum

AGGREGATION_RULES: dict[str, type] = {
    "mean": WeightedMean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "geometric_median": GeometricMedian,
    "norm_bound": NormBound,
    "centered_clipping": CenteredClipping,
}

__all__ = [
    "AGGREGATION_RULES",
    "CenteredClipping",
    "Combination",
    "Coordinatewise",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormBound",
    "Rule",
    "TrimmedMean",
    "WeightedMean",
    "summed",
]
