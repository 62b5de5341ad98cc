"""BatchNorm's running statistics global, averaged or each client's own, on clients whose features lie differently.

What is to be learned is the same everywhere, once a client's features are normalised by its own statistics. In training
BatchNorm does that by the batch, whatever the buffers are; deployed, it takes the buffers.
"""

import pytest
import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.federation import federate
from fedddp.models import ImportedModule
from tests.helpers.support import assemble, client_states

PLACES = ((0.0, 1.0), (40.0, 5.0), (-15.0, 0.2))
"""Where client k's features lie: x = shift + scale z; the first client's are as a fresh BatchNorm expects them."""
EACH, FEATURES = 240, 6


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 2)

    def forward(self, x):
        return self.head(self.norm(x))


def shifted():
    stream = torch.Generator().manual_seed(3)
    z = torch.randn(len(PLACES), EACH, FEATURES, generator=stream)
    y = (z @ torch.tensor([2.0, -1, 1, 0, 1, -2]) > 0).long()
    x = torch.stack([shift + scale * part for (shift, scale), part in zip(PLACES, z, strict=True)])
    every = Examples(x.flatten(0, 1), y.flatten())
    return Dataset(every, Examples(z[0], y[0]), num_classes=2, mean=(0.0,), std=(1.0,))


def deployed(folder, **algorithm):
    """The federation, and each client's scores on its held-out fifth: of its own model, and of the global one."""
    f, start = assemble(
        folder,
        shifted(),
        (EACH,) * 3,
        model=ImportedModule("tests:Normed", Normed),
        client={"batch_size": 16, "optimizer": {"lr": 0.2}},
        algorithm=algorithm,
        evaluate={"every": 0, "holdout": 0.2, "personal_every": 1},
        run={"rounds": 6},
    )
    server = federate(f, start)
    scores = f.evaluation.clients.score(server, f.store)
    return f, start, server, scores.personal.accuracy, scores.global_model.accuracy


def test_averaged_they_fit_nobody(tmp_path):
    _, start, server, own, of_global = deployed(tmp_path, name="fedavg")
    assert torch.equal(own, of_global)
    assert own.max() < 0.75  # half the labels are of either kind
    p = start.num_trainable
    assert (start.w[p : p + FEATURES] == 0).all()
    running_mean = server.w[p : p + FEATURES]
    assert (running_mean - sum(shift for shift, _ in PLACES) / 3).abs().max() < 1.5


@pytest.mark.parametrize("algorithm", [{"name": "fedbn"}, {"name": "personal", "private": ["*.running_*"]}], ids=str)
def test_of_their_own_they_fit_everybody(tmp_path, algorithm):
    """With FedBN's scale and shift, or without: what counts here are the statistics."""
    f, start, server, own, of_global = deployed(tmp_path, **algorithm)
    assert own.min() > 0.9
    assert own.mean() > of_global.mean() + 0.2
    p = start.num_trainable
    assert torch.equal(server.w[p:], start.w[p:])  # nobody told the server
    for k, (shift, scale) in enumerate(PLACES):
        w = f.algorithm.personal_params(server, client_states(f, (k,), server))[0]
        assert (w[p : p + FEATURES] - shift).abs().max() < 0.4 * scale
        assert (w[p + FEATURES :] / scale**2 - 1).abs().max() < 0.5


def test_global_they_stay_as_they_are_and_fit_who_lies_there(tmp_path):
    _, start, server, own, of_global = deployed(tmp_path, name="personal", frozen=["*.running_*"])
    p = start.num_trainable
    assert torch.equal(server.w[p:], start.w[p:])
    assert not torch.equal(server.w[:p], start.w[:p])
    assert torch.equal(own, of_global)
    assert own[0] > 0.9
    assert own[1:].max() < 0.75
