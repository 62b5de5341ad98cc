"""A compressed sum on one rank, round after round."""

import torch
from torch import nn

from fedddp.aggregation import ExactSum, FastSum
from fedddp.aggregation.compression import Setting
from fedddp.clients import ClientStore
from fedddp.comm import Comm
from fedddp.flat import FlatSpec
from fedddp.rng import generator

MODULE = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))
SPEC = FlatSpec.of(MODULE)
LAYOUT = {"delta": SPEC.dim, "tau": 1}
LENGTH = SPEC.dim + 1
WEIGHT = torch.tensor([7, 1, 30, 12, 5])


def updates(seed=0, clients=5):
    return torch.randn(clients, LENGTH, generator=generator(seed, "updates"))


class Run:
    """A method's sum, round after round, with what it remembers."""

    def __init__(self, method, *, exact=False, layout=LAYOUT, spec=SPEC):
        self.columns = method.columns(layout, spec)
        self.memory, self.new = ClientStore(), method.init_client(self.columns)
        new_sum = lambda dtype: ExactSum("cpu") if exact else FastSum(dtype, "cpu")  # noqa: E731
        self.sum = method.sum(Setting(layout, spec, 3, 1, self.memory, new_sum))
        self.length = sum(layout.values())

    def round(self, t, rows, weight=WEIGHT, ids=None, width=2):
        """The weighted sum, the tail, in which every client counts one; ``width`` rows at once."""
        ids = range(len(rows)) if ids is None else ids
        self.sum.open(self.length, 3, float(weight.sum()))
        for at in range(0, len(rows), width):
            block = slice(at, at + width)
            self.sum.add(rows[block], weight[block], list(ids[block]))
            self.sum.tail[1] += len(rows[block])
        total = self.sum.total(Comm.alone(), t)
        self.memory.commit()
        return total, self.sum.tail

    def error(self, clients=5):
        return self.memory.get(range(clients), self.new)["error"]


def plain_sum(rows, weight=WEIGHT):
    return weight.double() @ rows.double()
