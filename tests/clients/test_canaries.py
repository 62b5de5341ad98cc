"""Canaries in place of gradients: one coordinate each, clipped by the oracle that clips gradients."""

import pytest
import torch
from torch import nn

from fedddp.clients.private.canaries import BEYOND, DIRAC
from fedddp.clients.private.ghost import GhostExamples
from fedddp.clients.private.oracle import VmappedExamples


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.parametrize("kind", [GhostExamples, VmappedExamples])
def test_a_clipped_canary_is_one_clip_along_its_coordinate(kind):
    oracle, clip = DIRAC[kind](kind(model())), 0.5
    numbers = [0, 17, 40, len(oracle.coordinates) - 1]
    at = oracle.coordinates[numbers]
    w, g = torch.zeros(2, oracle.spec.dim), torch.full((2, oracle.spec.dim), torch.nan)
    oracle.collect(w, g)
    oracle.size = -BEYOND * clip
    labels = torch.stack([torch.tensor([*numbers[:3], -1]), torch.tensor([numbers[3], -1, numbers[3], 0])])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    oracle.step(None, torch.zeros(2, 4, 1, 6, 6), labels, mask, clip)  # type: ignore[arg-type]
    expected = torch.zeros_like(g)
    expected[0, at[:3]] = -clip
    expected[1, at[3]] = -2 * clip
    torch.testing.assert_close(g, expected, rtol=1e-5, atol=1e-5 * clip)
