"""Least squares with two named parts, body and head: clients whose optima differ, and the papers' steps by hand."""

import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.models import ImportedModule
from fedddp.tasks import Task
from tests.helpers.support import assemble, client_states

BODY, HEAD = 3, 2
SIZES = (4, 7, 5)
LR, EPOCHS = 0.05, 3
WHOLE = {"local_epochs": EPOCHS, "batch_size": 0, "optimizer": {"lr": LR}, "precision": "float64"}


class Plane(nn.Module):
    """The residual of a plane through the origin: x holds (features, target)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(BODY, 1, bias=False)
        self.head = nn.Linear(HEAD, 1, bias=False)

    def forward(self, x):
        return self.body(x[:, :BODY]) + self.head(x[:, BODY:-1]) - x[:, -1:]


class LeastSquares(Task):
    def loss(self, outputs, y):
        return outputs.squeeze(-1).square() / 2


def points(sizes=SIZES, apart=1.0):
    """Every client's own plane, ``apart`` from the others'; a little noise besides."""
    stream = torch.Generator().manual_seed(5)
    parts = []
    for n in sizes:
        f = torch.randn(n, BODY + HEAD, generator=stream, dtype=torch.float64)
        slope = 1 + apart * torch.randn(BODY + HEAD, generator=stream, dtype=torch.float64)
        noise = 0.1 * torch.randn(n, generator=stream, dtype=torch.float64)
        parts.append(torch.cat([f, (f @ slope + noise).unsqueeze(1)], dim=1))
    return parts


def planes(folder, parts=None, **sections):
    """A federation of clients with the ``parts`` as their points, full batches, EPOCHS local steps, float64."""
    parts = parts or points()
    x = torch.cat(parts)
    examples = Examples(x, torch.zeros(len(x), dtype=torch.long))
    dataset = Dataset(examples, examples, num_classes=1, mean=(0.0,), std=(1.0,))
    sections = {"model": ImportedModule("tests:Plane", Plane), "client": WHOLE} | sections
    dtype = torch.float64 if sections["client"]["precision"] == "float64" else torch.float32
    task = LeastSquares(lambda: Plane().to(dtype), 1)
    return assemble(folder, dataset, [len(p) for p in parts], task=task, **sections)


def slope(part, w):
    """The gradient of a client's mean loss at ``w [D]``."""
    f, target = part[:, :-1], part[:, -1]
    return f.T @ (f @ w - target) / len(part)


def descend(part, w, steps=EPOCHS, lr=LR, correct=lambda g, w: g):
    """``w`` after that many full-batch steps."""
    for _ in range(steps):
        w = w - lr * correct(slope(part, w), w)
    return w


def mean(vectors, parts):
    """Weighted by the clients' numbers of points."""
    return sum(v * len(p) for v, p in zip(vectors, parts, strict=True)) / sum(map(len, parts))


def personal(f, server):
    """What each client would deploy, [N, D]."""
    rows = [
        f.algorithm.personal_params(server, client_states(f, (k,), server)).view(1, -1)
        for k in range(len(f.trainer.data.sizes))
    ]
    return torch.cat(rows)
