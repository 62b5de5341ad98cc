"""The grading: pytest. Each test is a point; all pass with the solution."""

from pathlib import Path

import pytest
import torch
from exercise import Aggregate, LocalStep

import fedddp

CONFIG = Path(__file__).with_name("config.toml")
FEW = {"run.rounds": 2, "client.local_epochs": 1}


def test_1a_a_step_goes_against_the_gradient():
    w, g = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0])
    torch.testing.assert_close(LocalStep(lr=0.1).stepped(w, g), torch.tensor([0.0, 3.0]))


def test_1b_a_step_keeps_the_shape_of_a_layer():
    w, g = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(LocalStep(lr=0.5).stepped(w, g), w - 0.5 * g)


def test_1c_a_step_leaves_what_it_was_given():
    w, g = torch.ones(2), torch.ones(2)
    LocalStep(lr=0.5).stepped(w, g)
    assert (w.tolist(), g.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_2a_equal_clients_count_the_same():
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    torch.testing.assert_close(Aggregate().columns(x, torch.tensor([5.0, 5.0]).double()), torch.tensor([2.0, 1.0]))


def test_2b_a_client_counts_as_often_as_it_has_examples():
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    torch.testing.assert_close(Aggregate().columns(x, torch.tensor([1.0, 3.0]).double()), torch.tensor([2.5, 1.5]))


def test_2c_one_client_alone_is_the_mean():
    x = torch.randn(1, 5)
    torch.testing.assert_close(Aggregate().columns(x, torch.tensor([7.0]).double()), x[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with your two lines, and with fedddp's own."""
    where = {"run.dir": str(tmp_path_factory.mktemp("runs"))}
    yours = fedddp.run(CONFIG, FEW, where, name="yours")
    own = {"run.name": "own", "client.optimizer": {"name": "sgd", "lr": 0.05}, "aggregation.rule": {"name": "mean"}}
    theirs = fedddp.run(CONFIG, FEW, where, own)
    return yours, theirs


def test_3a_together_they_are_federated_averaging(runs):
    yours, theirs = runs
    torch.testing.assert_close(yours.w, theirs.w, rtol=1e-3, atol=1e-4)  # float32, in another order


def test_3b_it_learns(runs):
    assert runs[0].summary["final_test_accuracy"] > 0.5
