"""Where SCAFFOLD and FedDyn lead, to the last digits: 20 unequal clients with quadratic losses of their own.

F_k(w) = (w - a_k) H_k (w - a_k) / 2 in closed form, so that a thousand rounds of the real loop take two seconds.
"""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.federation import federate
from fedddp.models import ImportedModule
from fedddp.optim import Optimizer
from fedddp.tasks import Task
from fedddp.types import LocalResult
from tests.helpers.support import assemble, client_states

SIZES = tuple(1 + (7 * k) % 20 + (80 if k == 3 else 0) for k in range(20))  # 1 to 20, and one of 102
SHAPE, DIM, STEPS, LR = (6, 5), 30, 10, 0.2
EXAMPLES = torch.tensor(SIZES, dtype=torch.float64)
UNIFORM = torch.ones(20, dtype=torch.float64)
pytestmark = pytest.mark.slow
COHORTS = {"4 of 20": ({"size": 4}, 900), "all": ({"size": 20}, 120)}


@cache
def problems():
    """H [20, d, d] with eigenvalues from 0.5 to 2, and a [20, d]."""
    stream = torch.Generator().manual_seed(11)
    turned = torch.linalg.qr(torch.randn(20, DIM, DIM, generator=stream, dtype=torch.float64)).Q
    values = 0.5 + 1.5 * torch.rand(20, DIM, generator=stream, dtype=torch.float64)
    return turned @ torch.diag_embed(values) @ turned.mT, torch.randn(20, DIM, generator=stream, dtype=torch.float64)


def optimum(weights):
    """Of the mean of the losses with these weights."""
    h, a = problems()
    return torch.linalg.solve(
        (weights[:, None, None] * h).sum(0), (weights[:, None] * (h @ a[..., None])[..., 0]).sum(0)
    )


def slopes(w):
    """The gradient of each client's loss at ``w``, [20, d]."""
    h, a = problems()
    return ((w - a)[:, None, :] @ h)[:, 0]


@dataclass(frozen=True)
class Descent:
    """Local training as algorithms ask for it: STEPS gradient steps from a closed form, SGD without momentum."""

    ids: tuple[int, ...]
    round: int
    optimizer: Optimizer

    @property
    def num_examples(self):
        return torch.tensor(SIZES)[list(self.ids)]

    def train(self, start, correct=None):
        h, a = (part[list(self.ids)] for part in problems())
        w = start.expand(len(self.ids), -1).clone()
        for _ in range(STEPS):
            g = ((w - a)[:, None, :] @ h)[:, 0]
            w -= LR * (correct(g, w) if correct else g)
        zeros = torch.zeros(len(self.ids), dtype=torch.float64)
        return LocalResult(start, w - start, torch.full((len(self.ids),), STEPS), zeros, zeros)


@dataclass(frozen=True)
class Quadratic:
    """A trainer of all clients of a round at once."""

    optimizer: Optimizer
    width: int = 20

    def on(self, ids, round):
        return Descent(tuple(ids), round, self.optimizer)


class Parameters(nn.Module):
    """A matrix, which PowerSGD compresses, and nothing to compute with it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))

    def forward(self, x):
        return x[:, :1] * self.w.sum()


def federation(folder, algorithm, rounds, **sections):
    points = Examples(torch.zeros(sum(SIZES), 1, dtype=torch.float64), torch.zeros(sum(SIZES), dtype=torch.long))
    dataset = Dataset(points, points, num_classes=1, mean=(0.0,), std=(1.0,))
    f, server = assemble(
        folder,
        dataset,
        SIZES,
        task=Task(Parameters, 1),
        model=ImportedModule("tests:Parameters", Parameters),
        algorithm=algorithm,
        client={"precision": "float64", "optimizer": {"lr": LR}},
        run={"rounds": rounds},
        **sections,
    )
    return replace(f, trainer=Quadratic(f.trainer.optimizer(0))), server


def distance(a, b):
    return float((a - b).abs().max())


CASES = {
    "scaffold, uniform": ({"name": "scaffold"}, UNIFORM),
    "scaffold, examples": ({"name": "scaffold", "weighting": "examples"}, EXAMPLES),
    "scaffold, NIID-Bench": (
        {"name": "scaffold", "weighting": "examples", "control_weighting": "uniform"},
        UNIFORM,
    ),
    "feddyn, uniform": ({"name": "feddyn", "alpha": 0.5}, UNIFORM),
    "feddyn, examples": ({"name": "feddyn", "alpha": 0.5, "weighting": "examples"}, EXAMPLES),
}
"""Keys, and the weights of the clients' losses in what is minimised."""
HELD = {"scaffold": ("control", "control"), "feddyn": ("h", "gradient")}
"""What the server keeps, and what clients keep whose mean it is."""


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("case", CASES)
def test_the_optimum_of_the_weighted_mean_is_reached(tmp_path, case, cohort):
    """And the server's vector is the mean, with the same weights, of what ALL clients hold."""
    (keys, weights), (sampled, rounds) = CASES[case], COHORTS[cohort]
    f, server = federation(tmp_path, keys, rounds, cohort=sampled)
    server = federate(f, server)
    assert distance(server.w, optimum(weights)) < 1e-12
    assert distance(optimum(EXAMPLES), optimum(UNIFORM)) > 0.1
    mine, theirs = HELD[keys["name"]]
    held = client_states(f, range(20), server)[theirs]
    assert distance(server.extra[mine], weights @ held / weights.sum()) < 1e-12
    assert distance(held, slopes(server.w)) < 1e-11


LATE = {"top_k": {"name": "top_k", "share": 0.3}, "power_sgd": {"name": "power_sgd", "rank": 2}}


@pytest.mark.parametrize("compression", LATE)
@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_late_is_not_lost(tmp_path, case, compression):
    """All clients: the optimum; 4 of 20: the server's vector is the mean of what clients hold and have sent."""
    keys, weights = CASES[case]
    mine, theirs = HELD[keys["name"]]
    for name, rounds, size in (("all", 350, 20), ("some", 40, 4)):
        f, server = federation(
            tmp_path / name, keys, rounds, cohort={"size": size}, aggregation={"compression": LATE[compression]}
        )
        server = federate(f, server)
        state = client_states(f, range(20), server)
        late = late_of(f, keys)
        assert distance(server.extra[mine], weights @ (state[theirs] - late) / weights.sum()) < 1e-12
        if name == "all":
            assert distance(server.w, optimum(weights)) < 1e-12
            assert slopes(server.w).mul(weights[:, None]).sum(0).abs().max() / weights.sum() < 1e-12
        else:
            assert late.abs().max() > 1e-3


def late_of(f, keys):
    """By how much what clients hold is ahead of what has arrived, [20, d]."""
    nothing = {"error": torch.zeros_like(next(iter(f.store._beside._kept.values()))["error"])}
    left = f.store._beside.get(range(20), nothing)["error"].double()  # of the vectors one after another
    if keys["name"] == "feddyn":
        return -keys["alpha"] * left
    per_client = EXAMPLES[:, None] if keys.get("control_weighting") == "uniform" else 1.0
    return left[:, DIM:] * per_client


@pytest.mark.parametrize("case", CASES)
def test_clients_that_fail_do_not_count(tmp_path, case, logged):
    """Every third client fails in every other round: its state stays, and the mean is of what all hold."""
    keys, weights = CASES[case]
    f, server = federation(tmp_path, keys, 30, cohort={"size": 4})
    server = federate(replace(f, trainer=Failing(f.trainer.optimizer)), server)
    assert any("failed" in line for line in logged)
    mine, theirs = HELD[keys["name"]]
    assert distance(server.extra[mine], weights @ client_states(f, range(20), server)[theirs] / weights.sum()) < 1e-12


class Failing(Quadratic):
    def on(self, ids, round):
        if round % 2 and any(k % 3 == 0 for k in ids):
            raise RuntimeError("a broken disk")
        return super().on(ids, round)
