"""Six unequal clients, three a round, real minibatches; local training as a plain loop of torch.nn and torch.optim.

What references of papers are written with. Of fedddp they take which examples are in which batch and who takes part.
"""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.data.batches import plan
from fedddp.federation import federate
from fedddp.models import ImportedModule
from fedddp.tasks import Task
from tests.helpers.support import assemble, client_states

SIZES = (23, 9, 14, 7, 17, 12)
CLIENTS = range(len(SIZES))
FEATURES, HIDDEN, CLASSES = 6, 5, 4
EPOCHS, BATCH, LR, ROUNDS, COHORT = 2, 5, 0.1, 5, 3
HEAVY = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}


def perceptron():
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()


def normalised():
    middle = nn.BatchNorm1d(HIDDEN), nn.Tanh()
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), *middle, nn.Linear(HIDDEN, CLASSES)).double()


def examples():
    """Each client's own: x [n_k, FEATURES] around a point of its own, y [n_k] of two classes mostly."""
    stream = torch.Generator().manual_seed(42)
    for k, n in enumerate(SIZES):
        x = torch.randn(n, FEATURES, generator=stream, dtype=torch.float64)
        x = x + torch.randn(FEATURES, generator=stream, dtype=torch.float64)
        yield x, (torch.randint(3, (n,), generator=stream) + k) % CLASSES


DATA = list(examples())


def federation(folder, algorithm, *, make=perceptron, optimizer=None, width=1, client=None, **sections):
    """The same clients in fedddp; ``width`` of them trained at once. ``client``: more keys of that section."""
    x, y = (torch.cat(parts) for parts in zip(*DATA, strict=True))
    dataset = Dataset(Examples(x, y), Examples(x, y), CLASSES, mean=(0.0,), std=(1.0,))
    execution = {"name": "sequential"} if width == 1 else {"name": "vectorized", "width": width}
    usual = {"precision": "float64", "local_epochs": EPOCHS, "batch_size": BATCH, "execution": execution}
    return assemble(
        folder,
        dataset,
        SIZES,
        task=Task(make, CLASSES),
        model=ImportedModule("tests:make", make),
        algorithm=algorithm,
        client={**usual, "optimizer": optimizer or {"lr": LR}, **(client or {})},
        **{"cohort": {"size": COHORT}, "run": {"rounds": ROUNDS}, **sections},
    )


class Run:
    """What a reference starts from, w_0 and the cohorts; what fedddp makes of it, round by round."""

    def __init__(self, folder, algorithm, *, make=perceptron, optimizer=None, **how):
        self.f, self.server = federation(folder, algorithm, make=make, optimizer=optimizer, **how)
        self.start, self.extra, self.make = self.server.w, self.server.extra, make
        self.optimizer = optimizer or {"lr": LR}
        self.cohorts = [self.f.sampler.cohort(t).ids for t in range(ROUNDS)]

    def states(self):
        """The server after each round."""
        for t in range(ROUNDS):
            self.server = federate(self.f.until(t + 1), self.server)
            yield self.server

    def personal(self):
        """What every client would deploy now, [N, D]."""
        rows = [
            self.f.algorithm.personal_params(self.server, client_states(self.f, (k,), self.server)) for k in CLIENTS
        ]
        return torch.cat([row.view(1, -1) for row in rows])

    # -- the plain loop ------------------------------------------------------------------------------------------

    def net(self, w):
        """The module with w in it: parameters in their order, then the buffers that are not counters."""
        net = self.make()
        with torch.no_grad():
            for part, values in zip(entries(net), w.split([part.numel() for part in entries(net)]), strict=True):
                part.copy_(values.view_as(part))
        return net

    def trained(self, k, t, w, *, correct=None, penalty=None, epochs=EPOCHS, steps=None, only=None, optimizer=None):
        """Client k after ``epochs`` from ``w``, and how many steps that were.

        ``correct(g, w)``: of the flat gradient. ``penalty(net, rows)``: added to the batch's loss. ``only``: positions
        of the parameters that are trained at all. ``steps``: no more than so many.
        """
        net, taken = self.net(w).train(), 0
        params = [p for i, p in enumerate(net.parameters()) if only is None or i in only]
        descent = (optimizer or sgd_of(self.optimizer))(params)
        for rows in islice(batches(k, t, epochs), steps):
            loss = F.cross_entropy(net(DATA[k][0][rows]), DATA[k][1][rows])
            if penalty:
                loss = loss + penalty(net, rows)
            descent.zero_grad()
            loss.backward()
            if correct:
                g = correct(torch.cat([p.grad.flatten() for p in params]), flat(params))
                for p, part in zip(params, g.split([p.numel() for p in params]), strict=True):
                    p.grad = part.view_as(p)
            descent.step()
            taken += 1
        return flat(entries(net)), taken

    def gradient(self, k, t, w):
        """Of client k's first batch of the round at ``w``."""
        net = self.net(w).train()
        rows = next(batches(k, t, 1))
        F.cross_entropy(net(DATA[k][0][rows]), DATA[k][1][rows]).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    def loss(self, k, w):
        """F_k(w), over all examples of client k."""
        with torch.no_grad():
            return F.cross_entropy(self.net(w).eval()(DATA[k][0]), DATA[k][1])


def batches(k, t, epochs):
    order = plan([SIZES[k]], [k], t, epochs=epochs, batch_size=BATCH, seed=0)
    for index, mask in zip(order.index[0], order.mask[0], strict=True):
        yield index[mask]


def sgd_of(keys):
    return lambda params: torch.optim.SGD(params, **keys)


def entries(net):
    return [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


def mean(rows, weights):
    """sum_k p_k rows_k / sum_k p_k over the keys of ``rows``."""
    return sum(weights[k] * row for k, row in rows.items()) / sum(weights[k] for k in rows)


WEIGHTS = {"uniform": dict.fromkeys(CLIENTS, 1), "examples": dict(enumerate(SIZES))}


def assert_same(got, expected):
    assert (got - expected).abs().max() <= 1e-12
