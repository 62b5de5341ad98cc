"""Clients that miss the deadline cost their contribution; those of the cohort that are in time make the round."""

import math
import time

import pytest
import torch

from fedddp.comm import Comm, interrupt
from fedddp.federation import federate
from tests.helpers.distributed import configured, experiment_of


def slow(f, monkeypatch, clients, seconds):
    """Let each step of some clients' training take long."""
    trainer, on = type(f.trainer), type(f.trainer).on

    def slowed(self, ids, t):
        if set(ids) & set(clients):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                interrupt.check()
                time.sleep(0.005)
        return on(self, ids, t)

    monkeypatch.setattr(trainer, "on", slowed)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_who_is_late_does_not_count_and_is_not_waited_for(tmp_path, monkeypatch, logged, execution):
    width = {"sequential": {}, "vectorized": {"width": 1}}[execution]
    table = configured(
        tmp_path,
        run={"rounds": 1},
        data__partition={"num_clients": 4},
        client__execution={"name": execution, **width},
        cohort={"deadline": 1.5},
    )
    experiment = experiment_of(Comm.alone(), table)
    f = experiment.federation
    slow(f, monkeypatch, {f.schedule.mine(f.sampler.cohort(0), f.evaluation.server.load)[2]}, 60.0)
    began = time.monotonic()
    after = federate(f, experiment.server)
    assert time.monotonic() - began < 30
    assert f.telemetry.history[0]["participants"] == 2
    assert f.telemetry.history[0]["failures"] == 2  # the slow one, and the one behind it
    assert "2 clients failed; their updates are ignored: it was not done within cohort.deadline=1.5 s" in logged[0]
    assert not torch.equal(after.w, experiment.server.w)
    assert interrupt.deadline == math.inf


def test_without_a_slow_client_a_deadline_changes_nothing(tmp_path):
    made = []
    for deadline in (None, 600.0):
        table = configured(tmp_path, data__partition={"num_clients": 4}, cohort={"deadline": deadline})
        experiment = experiment_of(Comm.alone(), table)
        made.append(federate(experiment.federation, experiment.server).w)
    assert torch.equal(*made)


@pytest.mark.parametrize(("over", "drawn"), [(0.3, 13), (0.0, 10), (9.0, 20)])
def test_more_clients_are_drawn_for_those_that_will_be_late(tmp_path, over, drawn):
    cohort = {"size": 10, "deadline": 60.0, "over_selection": over}
    table = configured(tmp_path, data__partition={"num_clients": 20}, cohort=cohort)
    f = experiment_of(Comm.alone(), table).federation
    assert len(f.sampler.cohort(0).ids) == drawn
