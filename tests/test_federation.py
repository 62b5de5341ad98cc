"""fedddp.federation: when the loop evaluates, stops, and is interrupted."""

import json
from dataclasses import replace

import pytest
import torch

from fedddp.checkpoints.saved import newest
from fedddp.comm import interrupt
from fedddp.comm.interrupt import Interrupted
from fedddp.federation import federate
from tests.helpers.support import Recorder, assemble, few_digits


@pytest.fixture
def small(tmp_path):
    """``small(...)``: three clients of 10 digits each, a tiny perceptron; (federation, first state, sink)."""

    def make(**sections):
        sink = Recorder()
        settings = {"model": {"name": "mlp", "hidden": 6}, "run": {"rounds": 4, "name": "small"}} | sections
        return *assemble(tmp_path, few_digits(30, 20), (10, 10, 10), sinks=[sink], **settings), sink

    return make


class Stopped:
    """A trainer in whose ``call``-th client the process is asked to stop."""

    def __init__(self, trainer, call):
        self.trainer, self.left, self.data, self.width = trainer, call, trainer.data, trainer.width

    def on(self, ids, round):
        self.left -= 1
        if not self.left:
            interrupt.request("SIGTERM")
        return self.trainer.on(ids, round)


def test_it_evaluates_when_due_and_after_the_last_round(small):
    f, server, sink = small(evaluate={"every": 3})
    federate(f, server)
    evaluated = [r.metrics["round"] for r in sink.records if r.metrics["test_accuracy"] is not None]
    assert evaluated == [3, 4]
    assert [r.metrics["round"] for r in sink.records] == [1, 2, 3, 4]


def test_it_stops_when_the_target_is_reached(small):
    f, server, sink = small(evaluate={"every": 2, "target_accuracy": 1e-9}, checkpoint={"every": 100})
    final = federate(f, server)
    assert final.round == len(sink.records) == 2
    assert f.checkpoints.flush() == 2


def test_an_interrupted_round_is_as_if_it_had_not_begun(small, tmp_path, monkeypatch):
    """Stopped in the second block of round 3; resumed, the run ends with the bits of one that was not stopped."""
    f, server, _ = small(run={"rounds": 4, "name": "whole"}, client={"execution": {"width": 2}})
    whole = federate(f, server)
    settings = {"run": {"rounds": 4, "name": "small", "resume": "auto"}, "client": {"execution": {"width": 2}}}
    f, server, sink = small(**settings)
    with monkeypatch.context() as asked:
        asked.setattr(interrupt, "_reason", None)  # on leaving, nobody has asked
        with pytest.raises(Interrupted, match="SIGTERM"):
            federate(replace(f, trainer=Stopped(f.trainer, 6)), server)
    assert len(sink.records) == 2
    assert f.checkpoints.flush() == 2
    assert newest(tmp_path / "small").round == 2
    again, server, sink = small(**settings)
    assert server.round == 2
    assert torch.equal(federate(again, server).w, whole.w)
    lines = (tmp_path / "small" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4]
    assert [r.metrics["round"] for r in sink.records] == [3, 4]
