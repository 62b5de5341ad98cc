"""Differential privacy: accountants, budget, noise and secret randomness."""

from .accounting import Composition, check_installed, compose, compose_runs, epsilon
from .audit import Canaries
from .budget import AccountLog, Budget, ClientBudget, ExampleBudget, Limits, NoBudget, SpendLog
from .calibration import calibrate, calibrate_worst
from .composition import covered, curve, merged, zcdp
from .cyclic import CyclicBudget, CyclicSampler
from .discrete_gaussian import discrete_gaussian
from .guarantee import Guarantee
from .mechanisms import MECHANISMS, Mechanism
from .poisson import PoissonSampler, rarely_more
from .randomness import Randomness

__all__ = [
    "MECHANISMS",
    "AccountLog",
    "Budget",
    "Canaries",
    "ClientBudget",
    "Composition",
    "CyclicBudget",
    "CyclicSampler",
    "ExampleBudget",
    "Guarantee",
    "Limits",
    "Mechanism",
    "NoBudget",
    "PoissonSampler",
    "Randomness",
    "SpendLog",
    "calibrate",
    "calibrate_worst",
    "check_installed",
    "compose",
    "compose_runs",
    "covered",
    "curve",
    "discrete_gaussian",
    "epsilon",
    "merged",
    "rarely_more",
    "zcdp",
]
