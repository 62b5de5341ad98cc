"""Assemble what a level of privacy needs: algorithm, sampler, trainer, budget, tally and sum.

One class for each value of ``privacy.level``, so that no part of the main loop depends on it.
"""

from .client import ClientPrivacy
from .example import ExamplePrivacy
from .plain import Plain

LEVELS: dict[str, type[Plain]] = {"none": Plain, "example": ExamplePrivacy, "client": ClientPrivacy}

__all__ = ["LEVELS", "Plain"]
