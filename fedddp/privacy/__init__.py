"""Differential privacy: accountants, budget, noise and secret randomness."""

from .accounting import check_installed, compose, epsilon
from .audit import Canaries
from .budget import Budget, ClientBudget, ExampleBudget, Limits, NoBudget, SpendLog
from .calibration import calibrate, calibrate_worst
from .discrete_gaussian import discrete_gaussian
from .guarantee import Guarantee
from .poisson import PoissonSampler, rarely_more
from .randomness import Randomness

__all__ = [
    "Budget",
    "Canaries",
    "ClientBudget",
    "ExampleBudget",
    "Guarantee",
    "Limits",
    "NoBudget",
    "PoissonSampler",
    "Randomness",
    "SpendLog",
    "calibrate",
    "calibrate_worst",
    "check_installed",
    "compose",
    "discrete_gaussian",
    "epsilon",
    "rarely_more",
]
