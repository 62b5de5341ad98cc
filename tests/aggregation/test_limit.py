"""Updates that are far too long cost their client's contribution, and a first round at most."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedddp.aggregation import DriftTally, FastSum, NormLimit, Pipeline
from fedddp.checkpoints.run_folder import read_json
from fedddp.comm import Comm
from fedddp.errors import Diverged, NothingLearned
from fedddp.federation import federate
from fedddp.types import Cohort, ServerState
from tests.helpers.distributed import configured, experiment_of
from tests.helpers.support import SIZES, D, flat, rows, send

LONG = 1e9


def pipeline(**more):
    reduce = FastSum(rows().dtype, "cpu")
    return Pipeline({"delta": D}, reduce, SIZES, Comm.alone(), tally=DriftTally, limit=NormLimit(**more))


def a_round(p, t, updates):
    inbox = p.open(Cohort(t, tuple(range(6)), 6), ServerState(torch.zeros(D, dtype=rows().dtype), flat(D)))
    for client, update in enumerate(updates):
        send(inbox, client, update)
    return inbox.mean()


def with_one_long(factor=LONG):
    return [u * (factor if k == 3 else 1) for k, u in enumerate(rows())]


def test_a_long_update_after_others_is_refused_alone(logged):
    p = pipeline(relative=True)
    assert a_round(p, 0, rows())[1].failed == ()
    mean, report = a_round(p, 1, with_one_long())
    assert report.failed == (3,)
    assert mean.vectors["delta"].abs().max() < 100
    assert "client 3 failed; its update is ignored: its update has norm" in logged[0]
    assert "aggregation.max_norm=off" in logged[0]


def test_a_first_round_with_a_long_update_is_aborted_and_the_next_one_does_without_it(logged):
    p = pipeline(relative=True)
    mean, report = a_round(p, 0, with_one_long())
    assert (mean.count, report.aborted) == (0, True)
    assert "round 1 was aborted; the model is unchanged: an update has norm" in logged[0]
    mean, report = a_round(p, 1, with_one_long())
    assert (mean.count, report.failed) == (5, (3,))


def test_hundred_times_the_others_is_accepted(logged):
    """Clients differ: one with many more examples goes much further."""
    p = pipeline(relative=True)
    for t in range(2):
        assert a_round(p, t, with_one_long(100))[1].failed == ()
    assert logged == []


def test_a_number_bounds_from_the_first_round_and_off_does_not(logged):
    longest = max(float(u.norm()) for u in rows())
    assert a_round(pipeline(fixed=longest), 0, rows())[1].failed == ()
    assert a_round(pipeline(fixed=longest), 0, with_one_long())[1].failed == (3,)
    assert "more than aggregation.max_norm=" in logged[0]
    assert a_round(pipeline(), 0, with_one_long())[1].failed == ()


@pytest.mark.parametrize(
    ("sections", "relative"),
    [
        ({}, True),
        ({"aggregation": {"max_norm": None}}, False),
        ({"algorithm": {"name": "qffl"}}, False),
        ({"attack": {"name": "sign_flip", "num_clients": 1}}, False),
        ({"aggregation__rule": {"name": "median"}}, False),
        ({"aggregation__compression": {"name": "int8"}}, False),
    ],
)
def test_others_are_the_measure_where_their_norms_are_told_and_comparable(tmp_path, sections, relative):
    table = configured(tmp_path, data__partition={"num_clients": 4}, **sections)
    f = experiment_of(Comm.alone(), table).federation
    limit = f.pipeline.limit
    limit.largest = 2.0
    assert limit.bound == (2000 if relative else math.inf)


def test_a_resumed_run_knows_the_rounds_before(tmp_path):
    table = configured(tmp_path, checkpoint={"every": 1}, data__partition={"num_clients": 4})
    experiment = experiment_of(Comm.alone(), table)
    experiment.train()
    bound = experiment.federation.pipeline.limit.bound
    assert math.isfinite(bound)
    table["run"] |= {"rounds": 3, "resume": "auto"}
    assert experiment_of(Comm.alone(), table).federation.pipeline.limit.bound == pytest.approx(bound, rel=1e-6)


def test_a_model_that_is_no_longer_finite_ends_the_run_and_is_not_kept(tmp_path):
    """Finite means, and a server's step that overflows float32."""
    huge = {"name": "sgd", "lr": 1e9, "momentum": 0.9}
    table = configured(
        tmp_path,
        run={"rounds": 6},
        checkpoint={"every": 1},
        algorithm={"server_optimizer": huge},
        aggregation={"max_norm": None},
    )
    experiment = experiment_of(Comm.alone(), table)
    with pytest.raises((Diverged, NothingLearned)) as ended:
        experiment.train()
    assert experiment.folder is not None
    assert read_json(experiment.folder.path / "status.json")["state"] == "failed"
    kept = sorted((experiment.folder.path / "checkpoints").glob("round-*"))
    assert len(kept) >= 1
    assert "round" in str(ended.value)


def test_rounds_that_bring_nothing_any_more_end_the_run(tmp_path, monkeypatch, logged):
    table = configured(tmp_path, run={"rounds": 40}, evaluate={"every": 0}, data__partition={"num_clients": 4})
    experiment = experiment_of(Comm.alone(), table)
    trainer = type(experiment.federation.trainer)
    on = trainer.on

    def broken_later(self, ids, t):
        if t >= 3:
            raise ValueError("the disk of round 4 on")
        return on(self, ids, t)

    monkeypatch.setattr(trainer, "on", broken_later)
    with pytest.raises(NothingLearned, match=r"last 3 rounds, so training stopped after round 6; the model is that of"):
        experiment.train()


def test_rounds_without_anybody_are_no_failure(tmp_path):
    """A cohort can be empty, as where all stragglers are dropped: nobody tried."""
    f = experiment_of(Comm.alone(), configured(tmp_path, run={"rounds": 14})).federation
    f = replace(f, sampler=SimpleNamespace(cohort=lambda t: Cohort(t, (), 1), chosen=lambda cohort, w: cohort))
    assert federate(f, experiment_of(Comm.alone(), configured(tmp_path)).server).round == 14
    assert not f.telemetry.stalled(1)
