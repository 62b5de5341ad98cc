"""Compression over several ranks: the same result for any number of them, the bytes that were promised, resumption."""

import pytest
import torch
from torch import nn

from fedddp.aggregation import ExactSum, FastSum, Pipeline
from fedddp.aggregation.compression import Int8, NoCompression, PowerSGD, RandomK, Setting, TopK
from fedddp.aggregation.compression.packing import SparseCode
from fedddp.aggregation.compression.top_k import HEADER
from fedddp.clients import ClientStore
from fedddp.comm.guard import Guard
from fedddp.flat import FlatSpec
from fedddp.rng import generator
from fedddp.sampling import home_rank
from fedddp.types import Cohort, LocalResult, ServerState, Update
from tests.helpers.distributed import configured, train

METHODS = [NoCompression(), Int8(bucket=256), RandomK(share=0.1), TopK(share=0.01), PowerSGD(rank=4)]
CLIENTS, ROUNDS = 10, 2
SIZES = torch.arange(1, CLIENTS + 1)
SPEC = FlatSpec.of(nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 10)))
RESULT = LocalResult(torch.zeros(0), torch.zeros(0), torch.ones(1), torch.zeros(1), torch.zeros(1))


def means(comm, sum):
    """Of each method the means of two rounds, in which each rank has the clients at home there, and its bytes.

    In the second round clients 0 and 3 do not take part, and client 5's update is refused.
    """
    comm.guard = Guard.of(clients=CLIENTS)
    results = []
    for method in METHODS:
        layout = {"delta": SPEC.dim, "tau": 1}
        memory = ClientStore()
        new_sum = lambda dtype: ExactSum("cpu") if sum == "exact" else FastSum(dtype, "cpu")  # noqa: E731
        reduce = method.sum(Setting(layout, SPEC, 5, comm.world_size, memory, new_sum))
        pipeline, found, before = Pipeline(layout, reduce, SIZES, comm), [], comm.bytes_sent
        for t in range(ROUNDS):
            cohort = Cohort(t, tuple(k for k in range(CLIENTS) if t == 0 or k not in (0, 3)), CLIENTS)
            inbox = pipeline.open(cohort, ServerState(torch.zeros(SPEC.dim), SPEC))
            for k in cohort.ids:
                if home_rank(k, comm.world_size) == comm.rank:
                    delta = torch.randn(1, SPEC.dim, generator=generator(k, "delta", t)) / 10
                    delta[0, 7] = float("nan") if t and k == 5 else 1.0
                    inbox.add([k], Update({"delta": delta, "tau": torch.tensor([[float(k)]])}, SIZES[[k]]), RESULT)
            mean, _ = inbox.mean()
            memory.commit()
            found.append(torch.cat(list(mean.vectors.values())))
        results.append((found, (comm.bytes_sent - before) / ROUNDS))
    return results


@pytest.mark.parametrize("sum", ["exact", "fast"])
def test_the_mean_does_not_depend_on_the_number_of_ranks(run_ranks, sum):
    """Bit for bit where sums are exact. In float32 last bits differ: of the mean, not of what was left out."""
    worlds = [run_ranks(means, world_size, sum) for world_size in (1, 2, 3)]
    for method, *ranks in zip(METHODS, *(rank for world in worlds for rank in world), strict=True):
        reference = ranks[0][0]
        for found, _ in ranks[1:]:
            for one, other in zip(reference, found, strict=True):
                if sum == "exact":
                    assert torch.equal(one, other), method
                else:
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=str(method))


def test_the_bytes_are_those_of_the_formulas(run_ranks):
    """Of ten clients on two ranks (in the second round eight, one of them refused), tau and the tail in all of them."""
    plain, int8, random_k, top_k, power = (bytes for _, bytes in run_ranks(means, 2, "fast")[0])
    size, rest = SPEC.dim, 1 + (1 + 2 + 3 * 9 + 2)  # a sum over two ranks sends each number once
    assert plain == 4 * (size + rest)
    assert int8 == size + 8 * (-(-size // 256) + rest + 1)
    assert random_k == 4 * (round(0.1 * size) + rest)
    assert top_k == 4.5 * (HEADER + SparseCode(size, round(0.01 * size), 8).size) + 4 * (rest + 2)
    assert power == 4 * (4 * (300 + 200) + 4 * (200 + 10) + (200 + 10) + rest)
    assert top_k / plain < 0.03


REMEMBERING = [{"name": "top_k", "share": 0.02}, {"name": "power_sgd", "rank": 2}]


def table_of(tmp_path, name, rounds, compression, resume="never", **more):
    return configured(
        tmp_path,
        run={"name": name, "rounds": rounds, "resume": resume},
        data__partition={"num_clients": 6},
        cohort={"size": 4},
        checkpoint={"every": 1},
        aggregation={"compression": compression, **more},
    )


@pytest.mark.parametrize("compression", REMEMBERING, ids=lambda table: table["name"])
def test_resumed_it_is_the_uninterrupted_run_bit_for_bit(run_ranks, tmp_path, compression):
    """On as many ranks, and with an exact sum on another number of them too."""
    whole = run_ranks(train, 2, table_of(tmp_path, "whole", 4, compression))[0]
    run_ranks(train, 2, table_of(tmp_path, "cut", 2, compression))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, compression, "auto"))[0]
    assert resumed["sha256"] == whole["sha256"]
    whole = run_ranks(train, 1, table_of(tmp_path, "exact", 4, compression, sum="exact"))[0]
    run_ranks(train, 3, table_of(tmp_path, "part", 2, compression, sum="exact"))
    resumed = run_ranks(train, 2, table_of(tmp_path, "part", 4, compression, "auto", sum="exact"))[0]
    assert resumed["sha256"] == whole["sha256"]
