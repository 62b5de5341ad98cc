"""Assemble what a level of privacy needs: algorithm, sampler, trainer, budget, tally and sum.

One class for each value of ``privacy.level``, so that neither the main loop nor a check asks for its name.
"""

from ...config.schema import PrivacySection
from ...privacy import MECHANISMS
from .client import ClientPrivacy
from .correlated import CorrelatedPrivacy
from .example import ExamplePrivacy
from .plain import Plain

LEVELS: dict[str, type[Plain]] = {"none": Plain, "example": ExamplePrivacy, "client": ClientPrivacy}


def level_for(keys: PrivacySection) -> type[Plain]:
    """Return the class of ``privacy.level`` and ``privacy.mechanism``."""
    level = LEVELS[keys.level]
    return CorrelatedPrivacy if level is ClientPrivacy and MECHANISMS[keys.mechanism] else level


__all__ = ["LEVELS", "Plain", "level_for"]
