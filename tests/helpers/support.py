"""What several tests share: six clients' updates and their aggregation, and small federations of one rank."""

import logging
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddp.aggregation import ExactSum, FastSum, Pipeline
from fedddp.comm import Comm, Place
from fedddp.config import build
from fedddp.data import DATASETS, Dataset, Examples, Partition
from fedddp.errors import UsageError
from fedddp.flat import FlatSpec
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from fedddp.types import Cohort, LocalResult, ServerState, Update
from tests.helpers.distributed import configured

D = 40
SIZES = torch.tensor([7, 1, 30, 12, 5, 3])
REDUCES = {"fast": lambda: FastSum(torch.float32, "cpu"), "exact": lambda: ExactSum("cpu")}


def rows(seed=0, dtype=torch.float32):
    """One update a client, of very different sizes, so that the order of a float sum shows."""
    stream = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(-3, 3).view(-1, 1)
    return (torch.randn(len(SIZES), D, generator=stream, dtype=torch.float64) * scale).to(dtype)


def result(loss=0.5, accuracy=0.25):
    figures = [torch.tensor([v], dtype=torch.float64) for v in (loss, accuracy)]
    return LocalResult(torch.zeros(D), torch.zeros(1, D), torch.tensor([1]), *figures)


def opened(reduce, *, ids=range(6), comm=None, w=None, layout=None, **more):
    pipeline = Pipeline(layout or {"delta": D}, reduce, SIZES, comm or Comm.alone(), **more)
    server = ServerState(torch.zeros(D, dtype=rows().dtype) if w is None else w, flat(D))
    return pipeline.open(Cohort(4, tuple(ids), 6), server)


def send(inbox, client, row, weight=None):
    weight = SIZES[[client]] if weight is None else torch.tensor([weight])
    with inbox.tolerate([client]):
        inbox.add((client,), Update({"delta": row.view(1, -1)}, weight), result(loss=client, accuracy=client / 8))


def aggregated(reduce, updates, order=range(6), **more):
    inbox = opened(reduce, **more)
    for client in order:
        send(inbox, client, updates[client])
    return inbox.mean()


@cache
def all_digits():
    """The embedded digits; they need no folder."""
    return DATASETS["mnist-mini"](Path("not-needed"), False)


def few_digits(num_train, num_test=5):
    """Copies of the first of the embedded digits."""
    whole = all_digits()
    cut = ((whole.train, num_train), (whole.test, num_test))
    parts = (Examples(part.x[:n].clone(), part.y[:n].clone()) for part, n in cut)
    return Dataset(*parts, num_classes=10, mean=whole.mean, std=whole.std)


def flat(d, p=None):
    """The layout of a model of one tensor of ``d`` entries, or of two of which the first, of ``p``, is trainable."""
    shapes = ((d,),) if p is None else ((p,), (d - p,))
    return FlatSpec(("w", "buffer")[: len(shapes)], shapes, d if p is None else p, d, torch.float32)


def client_states(f, ids, server):
    """The states of the clients ``ids`` as the loop finds them in a round that begins with ``server``."""
    return f.store.get(ids, f.algorithm.init_client(server))


def assemble(folder, dataset, sizes, *, task=None, sinks=(), **sections):
    """A federation of one rank and its first state: client k owns the next ``sizes[k]`` examples of ``dataset``."""
    quiet = {
        "run": {"dir": str(folder), "threads": 1},
        "data": {"name": "synthetic", "args": {"num_train": 50, "num_test": 1}},
        "telemetry": {"progress": "off", "tensorboard": False},
        "checkpoint": {"every": 0},
        "evaluate": {"every": 0},
    }
    population = {"data": {"partition": {"num_clients": len(sizes)}}}
    config = resolve(build(quiet, population, sections), Place())
    partition = Partition.dealt(np.arange(sum(sizes)), np.array(sizes))
    experiment = connect(prepare(config, Place(), dataset, partition, task), sinks)
    return experiment.federation, experiment.server


@pytest.fixture
def logged():
    """The warnings that fedddp logs, whatever a program in the same process did to the logger before."""
    lines, logger = [], logging.getLogger("fedddp")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self):
        self.records, self.closed = [], []

    def round(self, record):
        self.records.append(record)

    def close(self, summary):
        self.closed.append(summary)


def refused_by(folder, model, **sections):
    """The line by which a run of ``model`` on synthetic examples is refused, before its folder is made."""
    table = configured(folder, **sections) | {"model": model}
    with pytest.raises(UsageError) as refused:
        prepare(resolve(build(table), Place()), Place())
    assert "\n" not in str(refused.value)
    assert not (folder / "runs").exists()
    return str(refused.value)
