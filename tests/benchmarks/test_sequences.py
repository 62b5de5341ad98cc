"""python -m benchmarks.sequences: both ways train, and the plain models are those of fedddp."""

import pytest
import torch

from benchmarks import sequences
from benchmarks.contenders import models
from benchmarks.workloads import WORKLOADS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "way"), [("gru-64", "layers folded over clients"), ("gpt-64-tied", "torch.func.vmap")]
)
def test_both_ways_are_timed(model, way):
    how, parameters, turns = sequences.measure(sequences.MODELS[model], 2, 1)
    assert how == f"vectorized: 2 clients at once, {way}"
    assert parameters > 0
    assert all(seconds > 0 for turn in turns for seconds in turn)


@pytest.mark.parametrize(("plain", "own"), [("lstm", "lstm"), ("gpt", "gpt-64")])
def test_the_plain_loops_models_have_as_many_parameters(plain, own):
    counts = [sum(p.numel() for p in make().parameters()) for make in (models.MODELS[plain], sequences.MODELS[own])]
    assert counts[0] == counts[1]
    assert models.MODELS[plain]()(torch.zeros(2, 80, dtype=torch.long)).shape == (2, 80, 97)
    assert plain in {workload.model for workload in WORKLOADS.values()}
