"""Small models of every kind that the clients' engine tells apart, and clients of very different sizes."""

import numpy as np
import torch
from torch import nn

from fedddp.clients import LocalTrainingSpec, SequentialTrainer, choose
from fedddp.data import ClientData, Dataset, Examples, Normalizer, Partition, Work
from fedddp.models import CNN, MLP, Logistic
from fedddp.optim import SGD
from fedddp.tasks import Task

CLASSES, SHAPE = 5, (1, 8, 8)
SIZES = [23, 0, 9, 10, 1, 1]
TOTAL = sum(SIZES)
CPU = torch.device("cpu")


class Viewing(nn.Module):
    """A forward of its own that needs the usual layout of a convolution's outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(36, CLASSES)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(len(x), -1))


class Rows(nn.Module):
    """A linear layer on each of an image's rows, as a sequence [B, 8, 8] or as a batch of 8 B."""

    def __init__(self, flat=False):
        super().__init__()
        self.rows, self.head, self.flat = nn.Linear(8, 12), nn.Linear(96, CLASSES), flat

    def forward(self, x):
        rows = x.reshape(-1, 8) if self.flat else x.squeeze(1)
        return self.head(self.rows(rows).tanh().view(len(x), -1))


class Centred(nn.Module):
    """Examples of a batch see each other."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x - x.mean(dim=0))


class Scaled(nn.Module):
    """A parameter outside of any layer: needs `vmap`, and every operation has its rule."""

    def __init__(self):
        super().__init__()
        self.head, self.scale = nn.Linear(64, CLASSES), nn.Parameter(torch.ones(CLASSES))

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.inner(self.inner(x.flatten(1)).tanh()))


class Tied(Twice):
    """Two layers, or two names of a layer, with one weight."""

    def __init__(self, same=False):
        super().__init__()
        self.outer = self.inner if same else nn.Linear(64, 64)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.head(self.outer(self.inner(x.flatten(1)).tanh()))


def frozen():
    module = MLP(hidden=6).build(SHAPE, CLASSES)
    module[1].bias.requires_grad_(False)
    return module


def frozen_backbone():
    """Only the head trains; the statistics and the dropout of what comes before are those of evaluation."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    body[0].weight.data.copy_(torch.linspace(-1, 1, 36).view(4, 1, 3, 3).sin())  # whatever the seed
    body[1].running_mean.fill_(0.1)
    return nn.Sequential(body.requires_grad_(False), nn.Linear(144, CLASSES))


def odd_convolutions():
    """Strides, dilation, no bias, 'same' padding; the last but one is too large for patches."""
    layers = (
        nn.Conv2d(1, 16, 3, padding="same", dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, 15, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
    )
    return nn.Sequential(*layers, nn.Conv2d(15, 4, 3, padding=1, dilation=(1, 2)), nn.Flatten(), nn.Linear(8, CLASSES))


def normed():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))


FOLDED = {
    "mlp": lambda: MLP(hidden=40).build(SHAPE, CLASSES),
    "cnn": lambda: CNN().build(SHAPE, CLASSES),
    "logistic": lambda: Logistic().build(SHAPE, CLASSES),
    "odd convolutions": odd_convolutions,
    "sequences": Rows,
    "rows as a batch": lambda: Rows(flat=True),
    "frozen backbone": frozen_backbone,
}
NORMED = {"group norm": normed}
CONTIGUOUS = {"a forward that views": Viewing}
VMAPPED = {
    "a parameter of its own": Scaled,
    "a layer used twice": Twice,
    "tied weights": Tied,
    "two names of a layer": lambda: Tied(same=True),
    "frozen": frozen,
}
BATCHED = FOLDED | CONTIGUOUS | NORMED | VMAPPED
HOW = {
    **dict.fromkeys(FOLDED | NORMED, "layers folded over clients"),
    **dict.fromkeys(CONTIGUOUS, "layers folded over clients, contiguous"),
    **dict.fromkeys(VMAPPED, "torch.func.vmap"),
}


def images(count=TOTAL, seed=0):
    """Noise with labels: nothing to learn, everything to compute."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *SHAPE, generator=stream, dtype=torch.float64)
    return Examples(x, torch.randint(CLASSES, (count,), generator=stream))


def dataset(examples=None):
    examples = examples or images()
    return Dataset(examples, Examples(examples.x[:8], examples.y[:8]), CLASSES, mean=(0.0,), std=(1.0,))


def task_of(make, dtype=torch.float64):
    return Task(lambda: make().to(dtype), CLASSES)


def clients(examples=None, dtype=torch.float64, sizes=SIZES):
    partition = Partition.dealt(np.arange(sum(sizes)), np.array(sizes))
    return ClientData(examples or images(), partition, Normalizer((0.0,), (1.0,), dtype, CPU))


def training(optimizer=None, *, local_epochs=1, batch_size=10, dtype=torch.float64, **spec):
    """How clients train."""
    return LocalTrainingSpec(optimizer or SGD(), Work(local_epochs, batch_size=batch_size), dtype=dtype, **spec)


def trainers(make, *, optimizer=None, width=0, name="vectorized", dtype=torch.float64, data=None, **how):
    """(sequential, the trainer that is chosen, why it is)."""
    task, data = task_of(make, dtype), data or clients(dtype=dtype)
    spec = training(optimizer, dtype=dtype, **{"local_epochs": 2, "batch_size": 5, "seed": 3} | how)
    batched, why = choose(task, data, images(8), spec, name=name, width=width)
    return SequentialTrainer(task, data, spec), batched, why


def start_of(make, dtype=torch.float64):
    return task_of(make, dtype).initial_params(3)
