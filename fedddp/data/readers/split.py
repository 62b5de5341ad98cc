"""Which examples of a dataset without a test set of its own are the test set."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...errors import UsageError
from ...rng import numpy_generator

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def held_out(examples: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw the test set: a bool for each example. Raises UsageError if one of the sets would be empty."""
    chosen = numpy_generator(seed, "table").random(examples) < fraction
    if 0 < chosen.sum() < examples:
        return chosen
    raise UsageError(
        f"data.args.test_fraction={fraction}: of {examples} examples, {chosen.sum()} would be the test set; both sets "
        "need one; change test_fraction or data.args.seed",
        code="table-split",
    )
