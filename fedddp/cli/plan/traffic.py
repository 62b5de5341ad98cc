"""What a rank sends in a round and what it holds, of a run that is prepared but has no other ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...algorithms import Algorithm
from ...comm import Purpose
from ...comm.counted import Counted
from ...flat import constants
from ...setup.levels import level_for
from ...setup.levels.plain import Plain, Unmasked
from ...setup.prepared import Prepared
from ...types import Cohort, ServerState


def level_of(p: Prepared, comm: Counted) -> Plain:
    """Return the level of privacy of the run; sums are not masked, since masks need the other ranks."""
    return level_for(p.config.privacy)(p, comm, Unmasked(comm))


def own_clients(p: Prepared) -> int:
    """Return the most clients of a round that a rank trains, where they are divided evenly."""
    return -(-min(p.config.cohort_size, p.data.num_clients) // p.place.world_size)


def sent(p: Prepared, level: Plain, server: ServerState, comm: Counted) -> dict[str, int]:
    """Return the bytes that a rank sends in a round, by purpose.

    The round's own sum is run, on updates of zeros; an evaluation is as large as its counts. Cohorts that are drawn at
    random (client-level privacy) are taken to have their expected size.
    """
    m, clients = min(p.config.cohort_size, p.data.num_clients), own_clients(p)
    pipeline = level.pipeline()
    pipeline.open(Cohort(0, tuple(range(m)), p.data.num_clients), server)
    rows = torch.zeros(1, sum(pipeline.layout.values()), dtype=p.spec.dtype, device=p.device)
    for client in range(clients):
        pipeline.reduce.add(rows, torch.ones(1, dtype=torch.float64), [client])
    pipeline.reduce.total(comm, 0)
    found = {str(Purpose.AGGREGATE): comm.bytes_sent}
    if p.config.evaluate.where != "rank0":
        counts = 2 + sum(part.size for part in p.task.sums)
        before = comm.bytes_sent
        comm.all_reduce(torch.zeros(counts, dtype=torch.float64), Purpose.EVALUATE)
        found[str(Purpose.EVALUATE)] = comm.bytes_sent - before
    return found


def held(p: Prepared, algorithm: Algorithm, server: ServerState) -> dict[str, int]:
    """Return an estimate of the bytes that a rank holds, by what for. Activations are not in it.

    Layers that are folded over clients and follow plain SGD keep no gradients, so that it is too high for them.
    """
    size, spec = p.spec.dtype.itemsize, p.spec
    frozen = sum(_bytes(t) for t in constants(p.task.model(p.config.run.seed)).values())
    at_once = max(1, min(p.trainer[0].width, own_clients(p)))
    with torch.device("meta"):
        state = p.training.optimizer.init([torch.empty(spec.num_trainable, dtype=spec.dtype)])
    moments = sum(_bytes(t) for vectors in state.values() for t in vectors)
    layout = sum(algorithm.vectors(spec).values())
    exact = 8 if p.config.aggregation.sum == "exact" else size
    kept = sum(_bytes(t) for t in algorithm.init_client(server).values())
    per_rank = -(-p.data.num_clients // p.place.world_size)
    examples = int(p.data.sizes.sum()) * _bytes(p.test.x[:1])
    return {
        "model, for training and for evaluation": 2 * (spec.dim * size + frozen),
        "server's model and state": _bytes(server.w) + sum(map(_bytes, server.extra.values())),
        "updates and gradients of clients at once": at_once * (spec.dim + spec.num_trainable) * size,
        "optimizer of clients at once": at_once * moments,
        "sum and mean of a round": layout * (exact + size),
        "what clients remember": kept * per_rank,
        "training examples": examples if p.config.placement == "shared" else math.ceil(examples / p.place.world_size),
    }


def start(p: Prepared, algorithm: Algorithm) -> ServerState:
    """Return the server's state before the first round."""
    return algorithm.init_server(p.task.initial_params(p.config.run.seed).to(p.device, p.spec.dtype), p.spec)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
