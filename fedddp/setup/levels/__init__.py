"""What the privacy section puts around a run: who may see a client's update, and how much a sum may tell.

One class a level of differential privacy. Each says which algorithm, sampler, trainer, budget, tally and sum belong
together, so that no part of the loop asks for the level.
"""

from .client import ClientPrivacy
from .example import ExamplePrivacy
from .plain import Plain

LEVELS: dict[str, type[Plain]] = {"none": Plain, "example": ExamplePrivacy, "client": ClientPrivacy}

__all__ = ["LEVELS", "Plain"]
