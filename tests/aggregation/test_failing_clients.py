"""fedddp.aggregation: a client that fails costs its own contribution, not the round."""

import math

import pytest
import torch

from fedddp.aggregation import CountTally, SilentTally, SumTally
from fedddp.comm import CommError
from fedddp.comm.interrupt import Interrupted
from fedddp.data import Dataset, Examples
from fedddp.errors import UsageError
from fedddp.federation import federate
from fedddp.models import MLP
from fedddp.tasks import Task
from fedddp.types import Cohort, ServerState
from tests.helpers.support import REDUCES, D, Recorder, aggregated, assemble, flat, opened, rows, send
from tests.helpers.zoo import CLASSES, SHAPE, images

CLIENTS = (11, 4, 10, 9, 1, 9)


@pytest.mark.parametrize("name", REDUCES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda row: row.index_fill(0, torch.tensor(3), math.nan), "its update is not finite"),
        (lambda row: row.index_fill(0, torch.tensor(3), -math.inf), "its update is not finite"),
        (lambda row: row[:-1], "algorithm.name: the upload 'delta' is [1, "),
    ],
)
def test_a_client_that_fails_costs_its_own_contribution_only(name, bad, reason, logged):
    inbox = opened(REDUCES[name]())
    for client in range(6):
        send(inbox, client, bad(rows()[client]) if client == 2 else rows()[client])
    mean, report = inbox.mean()
    others, _ = aggregated(REDUCES[name](), rows(), order=(0, 1, 3, 4, 5))
    assert torch.equal(mean.vectors["delta"], others.vectors["delta"])
    assert (mean.count, mean.weight, report.failed) == (5, 28, (2,))
    assert report.loss.isnan().tolist() == [False, False, True, False, False, False]
    assert len(logged) == 1
    assert logged[0].startswith(f"round 5: client 2 failed; its update is ignored: {reason}")


def test_exceptions_of_a_client_are_tolerated_and_those_of_the_run_are_not(logged):
    inbox = opened(REDUCES["fast"](), ids=(0, 1))

    def fail(error):
        with inbox.tolerate((1,)):
            raise error

    fail(ZeroDivisionError("of its own"))
    for error in (CommError("lost"), Interrupted("SIGTERM"), UsageError("a mistake")):
        with pytest.raises(type(error)):
            fail(error)
    send(inbox, 0, rows()[0])
    assert inbox.mean()[1].failed == (1,)
    assert logged == ["round 5: client 1 failed; its update is ignored: ZeroDivisionError: of its own"]


def test_exact_leaves_out_what_is_too_large_for_it(logged):
    updates = rows()
    updates[3, 5] = 4097
    mean, report = aggregated(REDUCES["exact"](), updates)
    assert report.failed == (3,)
    assert mean.count == 5
    assert "client 3 failed; its update is ignored: its update exceeds 4096" in logged[0]


def test_fast_leaves_out_what_would_overflow_the_sum(logged):
    """3e38 is a float32, 30 times 3e38 is not: one client must not make the model infinite for all."""
    updates = rows()
    updates[2, 5] = 3e38
    mean, report = aggregated(REDUCES["fast"](), updates)
    assert report.failed == (2,)
    assert mean.vectors["delta"].isfinite().all()
    assert "client 2 failed; its update is ignored: its update exceeds 5.86694e+36" in logged[0]


@pytest.mark.parametrize("weight", [-1, 31, math.nan])
def test_a_weight_that_is_not_its_own_is_left_out(weight, logged):
    """A client may weigh as much as its examples, not more: the exact sum's range is made for that."""
    inbox = opened(REDUCES["fast"](), ids=(0, 2))
    send(inbox, 0, rows()[0])
    send(inbox, 2, rows()[2], weight)
    mean, report = inbox.mean()
    assert report.failed == (2,)
    assert torch.allclose(mean.vectors["delta"], rows()[0])
    assert logged == [
        f"round 5: client 2 failed; its update is ignored: its weight {weight:g} is not between 0 and its number of "
        "examples"
    ]


@pytest.mark.parametrize("name", REDUCES)
def test_when_all_fail_nothing_counts(name, logged):
    mean, report = aggregated(REDUCES[name](), torch.full((6, D), math.nan))
    assert (mean.count, mean.weight) == (0, 0)
    assert report.failed == tuple(range(6))
    assert mean.vectors["delta"].tolist() == [0] * D
    reason = "its update is not finite; client.optimizer.lr may be too large"
    assert logged == [f"round 5: 6 clients failed; their updates are ignored: {reason}, first client 0"]
    assert report.reasons == {reason: 6}


ALIKE = {
    "the same error": ([ValueError("no")] * 3, {"ValueError: no": 3}),
    "other numbers": ([IndexError(f"Target {k} of 1.5e-3") for k in range(3)], {"IndexError: Target 0 of 1.5e-3": 3}),
    "only the first line counts": (
        [RuntimeError("shape\nhere"), RuntimeError("shape\nthere")],
        {"RuntimeError: shape": 2},
    ),
    "another type": ([ValueError("no"), TypeError("no")], {"ValueError: no": 1, "TypeError: no": 1}),
    "no words": ([ValueError(), ValueError()], {"ValueError: ": 2}),
}


@pytest.mark.parametrize("case", ALIKE)
def test_failures_of_a_round_are_told_once_a_reason(case, logged):
    errors, reasons = ALIKE[case]
    inbox = opened(REDUCES["fast"]())
    for client, error in enumerate(errors):
        with inbox.tolerate((client,)):
            raise error
    send(inbox, 5, rows()[5])
    report = inbox.mean()[1]
    assert report.reasons == reasons
    assert len(logged) == len(reasons)
    assert all(reason in line for line, reason in zip(logged, reasons, strict=True))


def test_where_the_cohort_is_secret_a_reason_is_told_once_without_client_and_round(logged):
    pipeline = opened(REDUCES["fast"](), tally=SilentTally)._pipeline
    for t, reason in enumerate(["a secret", "a secret", "another"]):
        inbox = pipeline.open(Cohort(t, (3,), 6), ServerState(torch.zeros(D), flat(D)))
        with inbox.tolerate((3,)):
            raise ValueError(reason)
        inbox.mean()
    assert logged == [
        f"a client failed; its update is ignored (said once): ValueError: {reason}"
        for reason in ("a secret", "another")
    ]


@pytest.mark.parametrize("tally", [CountTally, SumTally, SilentTally])
def test_reasons_are_not_recorded_where_no_client_may_be_told_apart(tally, logged):
    inbox = opened(REDUCES["fast"](), tally=tally)
    for client in range(6):
        with inbox.tolerate((client,)):
            raise ValueError("a secret")
    assert inbox.mean()[1].reasons == {}
    assert len(logged) == 1


def test_clients_without_examples_make_no_mean():
    inbox = opened(REDUCES["fast"](), ids=(0,))
    send(inbox, 0, rows()[0], weight=0)
    mean, report = inbox.mean()
    assert (mean.count, report.failed) == (0, ())
    assert mean.vectors["delta"].isfinite().all()


def of_one_who_cannot(client):
    """Digits 0 to 3 and a model that knows no others; one example of ``client`` is labelled 4."""
    examples = images()
    y = examples.y.clamp(max=CLASSES - 2)
    y[sum(CLIENTS[: client + 1]) - 1] = CLASSES - 1
    return Dataset(Examples(examples.x, y), Examples(examples.x[:4], y[:4]), CLASSES, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("client", [1, 2, 5])
def test_a_client_that_fails_in_a_block_costs_its_own_contribution_only(tmp_path, client, momentum, logged):
    """One label is out of the model's range: the others of its block are trained one by one, and counted once."""
    task = Task(lambda: MLP(hidden=40).build(SHAPE, CLASSES - 1).double(), CLASSES - 1)
    settings = {"precision": "float64", "batch_size": 5, "optimizer": {"momentum": momentum}}
    means, sink = {}, Recorder()
    for name, width in (("sequential", 0), ("vectorized", 3)):
        client_section = settings | {"execution": {"name": name, "width": width}}
        f, server = assemble(
            tmp_path,
            of_one_who_cannot(client),
            CLIENTS,
            task=task,
            client=client_section,
            sinks=[sink],
            run={"rounds": 2},
        )
        means[name] = federate(f, server).w
    assert (means["vectorized"] - means["sequential"]).abs().max() < 1e-12
    assert (means["vectorized"] - server.w).abs().max() > 1e-3
    assert [record.report.failed for record in sink.records] == [(client,)] * 4
    assert [record.metrics["participants"] for record in sink.records] == [5] * 4
    told = f"client {client} failed; its update is ignored: IndexError: Target 4 is out of bounds."
    assert logged == [f"round {t}: {told}" for t in (1, 2, 1, 2)]


def test_those_of_a_failed_block_come_again_behind_it():
    inbox, offered = opened(REDUCES["fast"]()), []
    for ids in inbox.blocks(range(5), 2):
        offered.append(ids)
        with inbox.tolerate(ids):
            if 2 in ids:
                raise ZeroDivisionError
    assert offered == [(0,), (1, 2), (1,), (2,), (3, 4)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_a_client_for_which_memory_does_not_suffice_says_what_to_lower(error, caplog):
    inbox = opened(REDUCES["fast"]())
    for ids in ((1, 2), (1,)):
        with inbox.tolerate(ids):
            raise error
    inbox.mean()
    together, alone = (record for record in caplog.records if "out of memory" in record.getMessage())
    assert together.getMessage().startswith("2 clients at once: out of memory")
    assert "client 1 failed; its update is ignored: out of memory" in alone.getMessage()
    assert all("lower client.execution.width" in record.getMessage() for record in (together, alone))
    assert not alone.exc_info


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9])
@pytest.mark.parametrize("at", [0, "weight"], ids=["entry", "weight"])
@pytest.mark.parametrize("sum_", ["fast", "exact"])
def test_a_sum_that_a_rank_poisons_aborts_its_round_and_no_more(tmp_path, monkeypatch, logged, bad, at, sum_):
    """One rank writes it into the collective, behind all checks of clients; the model stays as it was."""
    f, server = assemble(
        tmp_path,
        Dataset(images(), Examples(images().x[:8], images().y[:8]), CLASSES, mean=(0.0,), std=(1.0,)),
        [6, 6],
        task=Task(lambda: MLP(hidden=4).build(SHAPE, CLASSES), CLASSES),
        aggregation={"sum": sum_},
        run={"rounds": 3},
    )
    all_reduce, sums = type(f.comm).all_reduce, []

    def poisoned(comm, x, purpose):
        if purpose == "aggregate":
            sums.append(x)
            if len(sums) == 2:
                x[server.spec.dim if at == "weight" else at] = bad
        return all_reduce(comm, x, purpose)

    monkeypatch.setattr(type(f.comm), "all_reduce", poisoned)
    first = federate(f.until(1), server)
    second = federate(f.until(2), first)
    assert torch.equal(second.w, first.w)
    assert second.round == 2
    assert [
        line.startswith("round 2 was aborted; the model is unchanged: the sum over all ranks") for line in logged
    ] == [True]
    third = federate(f, second)
    assert third.w.isfinite().all()
    assert not torch.equal(third.w, second.w)
    assert [m["participants"] for m in f.telemetry.history] == [2, 0, 2]
