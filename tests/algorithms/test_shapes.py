"""Vectors of an algorithm, or of a stored state, that have other shapes than declared: one line, no traceback."""

import pytest
import torch

import fedddp
from fedddp.errors import NothingLearned, UsageError

SMALL = {
    "data": {"name": "synthetic", "args": {"num_train": 60, "num_test": 10, "shape": [1, 4, 4]}},
    "data.partition.num_clients": 4,
    "model.name": "logistic",
    "run": {"threads": 1, "device": "cpu", "rounds": 2},
    "telemetry": {"progress": "off", "tensorboard": False},
}


def run(folder, what="nothing", **sections):
    algorithm = {"name": "misshapen:Misshapen", "what": what}
    return fedddp.run(SMALL, {"run.dir": str(folder)}, algorithm=algorithm, **sections)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("what", ["upload", "upload name", "weight"])
def test_an_upload_of_another_shape_is_one_line(what, execution, tmp_path, logged):
    with pytest.raises(NothingLearned, match=r"4 x algorithm\.name: "):
        run(tmp_path, what, client={"execution": {"name": execution}})
    (line,) = logged
    assert "4 clients failed; their updates are ignored: algorithm.name: " in line
    assert "\n" not in line


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("what", ["initial", "state", "state name", "state missing"])
def test_a_state_of_another_shape_is_one_line(what, execution, tmp_path):
    with pytest.raises(UsageError) as refused:
        run(tmp_path, what, client={"execution": {"name": execution}})
    assert (refused.value.key, refused.value.code) == ("algorithm.name", "algorithm-shapes")
    assert "\n" not in str(refused.value)


def test_vectors_as_declared_are_taken(tmp_path):
    assert run(tmp_path).summary["failures"] == {}


@pytest.mark.parametrize("state", [{"c": torch.zeros(1, 5)}, {"d": torch.zeros(1, 3)}], ids=["c", "d"])
def test_a_stored_state_of_another_shape_is_refused(state, tmp_path, monkeypatch):
    """The user changed the algorithm's code between two runs."""
    first = run(tmp_path)
    monkeypatch.setattr("misshapen.Misshapen.init_client", lambda self, server: state)
    with pytest.raises(UsageError) as refused:
        run(tmp_path, resume=str(first.folder), rounds=3)
    assert (refused.value.key, refused.value.code) == ("run.resume", "state-shapes")
