"""Assemble what a level of privacy needs: algorithm, sampler, trainer, budget, tally and sum.

One class for each value of ``privacy.level``, so that neither the main loop nor a check asks for its name.
"""

from .client import ClientPrivacy
from .example import ExamplePrivacy
from .plain import Plain

LEVELS: dict[str, type[Plain]] = {"none": Plain, "example": ExamplePrivacy, "client": ClientPrivacy}

__all__ = ["LEVELS", "Plain"]
