"""fedddp.aggregation.compression.power_sgd, and what compressions with a memory do in a run."""

import math

import pytest
import torch

from fedddp.aggregation import Pipeline
from fedddp.aggregation.compression import PowerSGD, TopK
from fedddp.algorithms import FedAvg, Personal
from fedddp.comm import Comm
from fedddp.federation import federate
from fedddp.rng import generator
from fedddp.types import Cohort, LocalResult, ServerState, Update
from tests.helpers.compressing import LAYOUT, LENGTH, SPEC, WEIGHT, Run, plain_sum, updates
from tests.helpers.support import assemble, few_digits


def low_rank(r, seed=0, clients=5):
    """Updates whose matrices have rank r in all clients together."""
    rows = updates(seed, clients)
    columns = PowerSGD(rank=2).columns(LAYOUT, SPEC)
    for start, (n, c) in columns.tensors:
        left, right = (torch.randn(size, r, generator=generator(seed, "factor", size)) for size in (n, c))
        share = torch.randn(clients, r, generator=generator(seed, "share"))
        rows[:, start : start + n * c] = torch.einsum("nr,kr,cr->knc", left, share, right).flatten(1)
    return rows


def test_power_sgd_is_exact_on_updates_of_its_rank():
    rows, run = low_rank(2), Run(PowerSGD(rank=2))
    total, _ = run.round(0, rows)
    torch.testing.assert_close(total.double(), plain_sum(rows), rtol=1e-3, atol=2e-3)
    assert run.error().abs().max() < 1e-3
    worse = Run(PowerSGD(rank=1))
    worse.round(0, rows)
    assert worse.error().abs().max() > 0.1


def test_power_sgd_starts_from_the_last_subspace():
    """With the memory wiped, rounds on one matrix are power iterations: they reach the best approximation there is."""
    rows, run = updates(clients=1), Run(PowerSGD(rank=2))
    best = []
    for start, (n, c) in run.columns.tensors:
        s = torch.linalg.svdvals(rows[0, start : start + n * c].view(n, c).double())
        best.append(float(s[2:].square().sum()))
    left = []
    for t in range(40):
        run.round(t, rows, torch.ones(1), [0])
        left.append(float(run.error(1).double().square().sum()))
        run.memory._kept.clear()
    assert left[0] > 1.1 * sum(best)
    assert left[-1] == pytest.approx(sum(best), rel=0.02)


@pytest.mark.parametrize("method", [TopK(share=0.1), PowerSGD(rank=1)], ids=repr)
def test_a_client_whose_update_is_refused_keeps_its_memory(method):
    run = Run(method)
    pipeline = Pipeline(LAYOUT, run.sum, WEIGHT, Comm.alone())
    for t in range(2):
        inbox = pipeline.open(Cohort(t, tuple(range(5)), 5), ServerState(torch.zeros(SPEC.dim), SPEC))
        rows = updates(t)
        if t == 1:
            before = run.error()
            rows[2, 0] = math.nan
        figures = LocalResult(torch.zeros(0), torch.zeros(0), torch.ones(5), torch.zeros(5), torch.zeros(5))
        delta, tau = rows.split([SPEC.dim, 1], dim=1)
        kept = inbox.add(range(5), Update({"delta": delta, "tau": tau}, WEIGHT), figures)
        mean, _ = inbox.mean()
        run.memory.commit()
    assert kept == [0, 1, 3, 4]
    assert mean.weight == WEIGHT.sum() - WEIGHT[2]
    changed = (run.error() != before).any(dim=1)
    assert changed.tolist() == [True, True, False, True, True]


def test_a_memory_that_outgrows_the_sum_is_a_failure_of_the_client():
    run = Run(PowerSGD(rank=2), exact=True)
    rows = torch.full((1, LENGTH), 0.9 * run.sum.bound)
    run.memory.put([0], {"error": run.columns.split(rows)[0]}, [0])
    run.memory.commit()
    run.sum.open(LENGTH, 3, 7.0)
    with pytest.raises(ValueError, match="its update and what it remembers together exceed"):
        run.sum.add(rows, torch.ones(1), [0])


def test_of_a_partly_personal_model_the_shared_tensors_are_compressed():
    personal = Personal(private=("0.bias", "@BatchNorm*"))
    spec, layout = personal.uploaded(SPEC), personal.vectors(SPEC)
    assert spec.names == ("0.weight", "2.weight", "2.bias")
    assert layout == {"delta": spec.dim} == {"delta": 600 + 200 + 10}
    assert PowerSGD(rank=2).columns(layout, spec).tensors == ((0, (20, 30)), (600, (10, 20)))
    frozen = Personal(frozen=("*running*",)).uploaded(SPEC)
    assert frozen.dim == frozen.num_trainable == SPEC.num_trainable
    assert FedAvg().uploaded(SPEC) is SPEC


@pytest.mark.parametrize("algorithm", ["fedper", {"name": "fedrep", "inner": {"name": "scaffold"}}], ids=str)
def test_a_run_of_personal_models_under_a_compression_that_leaves_nothing_out(tmp_path, algorithm):
    algorithm = algorithm if isinstance(algorithm, dict) else {"name": algorithm}
    sections = {"model": {"name": "mlp", "hidden": 6}, "algorithm": algorithm, "run": {"rounds": 2}}
    ends = []
    for compression in ({"name": "none"}, {"name": "top_k", "share": 1.0, "values": "float32"}):
        aggregation = {"aggregation": {"compression": compression}}
        f, start = assemble(tmp_path / compression["name"], few_digits(30), (10, 20), **sections, **aggregation)
        ends.append(federate(f, start).w)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)
    assert f.store.state_dict()["1/beside/error"].shape == (sum(f.pipeline.layout.values()),)
