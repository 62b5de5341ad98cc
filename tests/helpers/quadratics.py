"""Three clients with least-squares problems of their own, whose local training can be written down."""

import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.federation import federate
from fedddp.tasks import Task
from tests.helpers.support import assemble

POINTS = torch.tensor(  # (features, target)
    [
        [1.0, 0.2, 3.0],
        [0.3, 1.0, -1.0],
        [-0.5, 0.8, 2.0],
        [0.9, -0.7, 0.5],
        [0.2, 0.4, 4.0],
        [1.2, 0.1, -2.0],
        [0.6, 0.6, 1.0],
    ],
    dtype=torch.float64,
)
SIZES, LR, START = (2, 4, 1), 0.2, (0.5, -1.0)
UNIFORM = (1, 1, 1)


class Plane(nn.Module):
    """The residual of a plane through the origin."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START, dtype=torch.float64))

    def forward(self, x):
        return x[:, :2] @ self.w.view(2, 1) - x[:, 2:]


class LeastSquares(Task):
    def loss(self, outputs, y):
        return outputs.squeeze(-1).square() / 2


TASK = LeastSquares(Plane, 1)


def quadratics(folder, **sections):
    """Full batches, E = 5 unless said, float64: local training is E gradient steps of rate 0.2."""
    points = Examples(POINTS, torch.zeros(len(POINTS), dtype=torch.long))
    client = {"local_epochs": 5, "batch_size": 0, "precision": "float64", "optimizer": {"lr": LR}}
    client |= sections.pop("client", {})
    if "local_steps" in client:
        del client["local_epochs"]
    dataset = Dataset(points, points, num_classes=1, mean=(0.0,), std=(1.0,))
    return assemble(folder, dataset, SIZES, task=TASK, client=client, **sections)


def problems():
    """Hessian [2, 2] and linear term [2] of each client: F_k(w) = w H w / 2 - b w + constant."""
    return [(p[:, :2].T @ p[:, :2] / len(p), p[:, :2].T @ p[:, 2] / len(p)) for p in POINTS.split(SIZES)]


def loss(k, w):
    points = POINTS.split(SIZES)[k]
    return (points[:, :2] @ w - points[:, 2]).square().mean() / 2


def gradient(k, w):
    h, b = problems()[k]
    return h @ w - b


def start():
    return torch.tensor(START, dtype=torch.float64)


def optimum(weights=SIZES):
    """Of the weighted mean of the clients' losses."""
    h, b = (sum(p * part for p, part in zip(weights, parts, strict=True)) for parts in zip(*problems(), strict=True))
    return torch.linalg.solve(h, b)


def descended(k, w, steps=5, extra=lambda w: 0.0, lr=LR, momentum=0.0):
    """Client k after ``steps`` from ``w``; ``extra(w)`` is added to its gradient."""
    v = 0.0
    for _ in range(steps):
        v = momentum * v + gradient(k, w) + extra(w)
        w = w - lr * v
    return w


def mean(rows, weights):
    return sum(p * row for p, row in zip(weights, rows, strict=True)) / sum(weights)


def trained(folder, rounds, algorithm, **sections):
    f, server = quadratics(folder, algorithm=algorithm, run={"rounds": rounds}, **sections)
    return federate(f, server), f


def final(folder, rounds, algorithm, **sections):
    return trained(folder, rounds, algorithm, **sections)[0].w


def assert_near(w, expected, tolerance=1e-11):
    assert (w - expected).abs().max() <= tolerance


class Drawn:
    """Work that is as many steps as said for each client, on full batches."""

    batch_size, smallest = 0, 1

    def __init__(self, steps):
        self.steps = steps

    def drawn(self, sizes, ids, round, seed):
        return torch.tensor([self.steps[k] for k in ids])
