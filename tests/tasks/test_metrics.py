"""fedddp.tasks.metrics: sums that add up over batches and ranks, against scikit-learn."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fedddp.data import Dataset, Examples
from fedddp.data.targets import IGNORED
from fedddp.tasks import Task
from fedddp.tasks.labels import Deciding, DecidingOnce
from fedddp.tasks.losses import BinaryCrossEntropy, SquaredError
from fedddp.tasks.metrics import Target, metrics_of, of_batch
from fedddp.tasks.next_token import NextToken
from fedddp.tasks.regression import Regressor

reference = pytest.importorskip("sklearn.metrics")


def summed(task, outputs, y):
    """The metrics from the sums of three batches of unequal size."""
    cuts = [0, 1, len(y) // 3, len(y)]
    totals = [of_batch(task.sums, outputs[a:b], y[a:b]) for a, b in pairwise(cuts)]
    whole = of_batch(task.sums, outputs, y)
    torch.testing.assert_close(sum(totals), whole, rtol=1e-12, atol=0)
    return metrics_of(task.sums, whole)


def test_classification():
    torch.manual_seed(0)
    y = torch.cat([torch.arange(7), torch.randint(7, (300,))])
    outputs = torch.randn(307, 8) + 1.5 * torch.eye(8)[y]  # class 7 never occurs, and is predicted
    found = summed(Task(nn.Identity, 8), outputs, y)
    guesses = outputs.argmax(dim=1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, guesses), abs=1e-12)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = reference.balanced_accuracy_score(y, guesses)
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert found["f1"] == pytest.approx(reference.f1_score(y, guesses, average="macro"), abs=1e-12)
    top5 = reference.top_k_accuracy_score(y, outputs, k=5, labels=range(8))
    assert found["top5_accuracy"] == pytest.approx(top5, abs=1e-12)


def test_labels():
    torch.manual_seed(0)
    y = (torch.rand(400, 5) < torch.tensor([0.5, 0.1, 0.9, 0.3, 0.02])).to(torch.uint8)
    outputs = 4 * torch.randn(400, 5) + 6 * y  # logits far from 0: no bin may saturate
    found = summed(Deciding(nn.Identity, 5), outputs, y)
    assert found["f1"] == pytest.approx(reference.f1_score(y, outputs > 0, average="macro"), abs=1e-12)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, outputs, average="macro"), abs=1e-3)
    assert found["accuracy"] == pytest.approx(float(((outputs > 0) == (y > 0)).float().mean()), abs=1e-6)


@pytest.mark.parametrize("scale", [0.03, 1.0, 30.0])
def test_binary_at_every_scale_of_logits(scale):
    torch.manual_seed(1)
    y = (torch.rand(500) < 0.3).long()
    outputs = scale * (torch.randn(500, 1) + y.unsqueeze(1))
    found = summed(DecidingOnce(nn.Identity, 1), outputs, y)
    guesses = outputs[:, 0] > 0
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, outputs[:, 0]), abs=2e-3)
    assert found["f1"] == pytest.approx(reference.f1_score(y, guesses), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, guesses), abs=1e-12)


def test_ties_count_half_and_a_label_without_a_yes_has_no_auroc():
    y = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.uint8)
    found = metrics_of((task := Deciding(nn.Identity, 2)).sums, of_batch(task.sums, torch.zeros(4, 2), y))
    assert found["auroc"] == 0.5
    only = y.clone()
    only[:] = 0
    assert metrics_of(task.sums, of_batch(task.sums, torch.zeros(4, 2), only))["auroc"] is None


def test_regression_far_from_zero():
    torch.manual_seed(0)
    y = 1e4 + 3 * torch.randn(300, 2, dtype=torch.float64)
    task = Regressor(nn.Identity, 2, SquaredError(), (1e4, 1e4), (3.0, 2.0))
    outputs = (y - 1e4) / torch.tensor([3.0, 2.0]) + 0.5 * torch.randn(300, 2)
    found = summed(task, outputs, y)
    guesses = outputs * torch.tensor([3.0, 2.0]) + 1e4
    assert found["r2"] == pytest.approx(reference.r2_score(y, guesses), abs=1e-9)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(y, guesses), abs=1e-9)
    roots = (((guesses - y) ** 2).mean(dim=0)).sqrt().mean()
    assert found["rmse"] == pytest.approx(float(roots), abs=1e-9)
    assert float(task.correct(outputs, y).mean()) == pytest.approx(found["mae"], rel=1e-9)


def test_padding_has_no_part_in_perplexity_loss_and_accuracy():
    torch.manual_seed(0)
    y, outputs = torch.randint(6, (4, 5)), torch.randn(4, 5, 6, dtype=torch.float64)
    y[0, 2:], y[3, :] = IGNORED, IGNORED
    task, rows = NextToken(nn.Identity, 6), y != IGNORED
    found = summed(task, outputs, y)
    nll = nn.functional.cross_entropy(outputs[rows], y[rows])
    assert found["perplexity"] == pytest.approx(math.exp(nll))
    assert found["bits_per_character"] == pytest.approx(float(nll) / math.log(2))
    assert found["accuracy"] == pytest.approx(float((outputs[rows].argmax(1) == y[rows]).double().mean()))
    losses = task.loss(outputs, y)
    assert losses[3] == 0
    assert float(losses[0]) == pytest.approx(float(nn.functional.cross_entropy(outputs[0, :2], y[0, :2])))
    changed = outputs.clone()
    changed[~rows] = 1e3
    assert torch.equal(task.loss(changed, y), losses)


@pytest.mark.parametrize("classes", [8, 200])
def test_scores_that_are_no_numbers_are_not_among_the_first(classes):
    outputs, y = torch.full((6, classes), math.nan), torch.arange(1, 7)
    found = metrics_of((task := Task(nn.Identity, classes)).sums, of_batch(task.sums, outputs, y))
    assert found["top5_accuracy"] == found["accuracy"] == 0


def test_nothing_scored_is_no_number():
    for task in (Task(nn.Identity, 8), Deciding(nn.Identity, 3), NextToken(nn.Identity, 4)):
        empty = torch.zeros(sum(part.size for part in task.sums), dtype=torch.float64)
        found = metrics_of(task.sums, empty)
        assert found["accuracy"] is None
        assert set(found) == set(task.metrics)
        assert task.metrics[0] == task.primary


def test_losses_of_labels_and_numbers():
    y = torch.tensor([[1, 0, 1]], dtype=torch.uint8)
    outputs = torch.tensor([[2.0, -1.0, 0.0]])
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(-1))) + math.log(0.5)) / 3
    assert float(BinaryCrossEntropy()(outputs, y)) == pytest.approx(expected)
    task = Regressor(nn.Identity, 1, SquaredError(), (10.0,), (2.0,))
    assert float(task.loss(torch.tensor([[1.0]]), torch.tensor([[16.0]]))) == pytest.approx((1 - 3) ** 2)


@pytest.mark.parametrize(
    ("text", "metric", "met", "missed"),
    [
        ("auroc>=0.95", "auroc", 0.95, 0.949),
        (" perplexity <= 9", "perplexity", 9, 9.1),
        ("loss<=1e-1", "loss", 0.1, 1),
    ],
)
def test_a_target_is_met_in_its_own_direction(text, metric, met, missed):
    target = Target.parse(text)
    assert target.metric == metric
    assert [target.met(value) for value in (met, missed, None)] == [True, False, False]


@pytest.mark.parametrize("text", ["", "auroc", "auroc=0.9", "auroc>0.9", "auroc>=", "auroc>=nan", ">=1", "mae>=9"])
def test_no_target(text):
    with pytest.raises(ValueError, match=r"should be a metric|less is better"):
        Target.parse(text)


def test_a_dataset_says_what_its_targets_are():
    x = torch.randn(6, 3)
    numbers = Dataset.of((x, torch.arange(6.0)), (x, torch.arange(6.0)), targets="real")
    assert (numbers.train.y.shape, numbers.num_classes, numbers.target_mean) == ((6, 1), 1, (2.5,))
    rows = [[0, 1], [1, 1], [1, 0]] * 2
    assert Dataset.of((x, rows), (x, rows), targets="labels").train.y.dtype == torch.uint8
    tokens = torch.tensor([[1, 2, 3], [3, 2, 1]])
    y = torch.tensor([[2, 3, IGNORED], [2, 1, 0]])
    text = Dataset.of((tokens, y), (tokens, y), targets="positions")
    assert (text.num_classes, text.num_tokens, text.shape, text.shape.per_position) == (4, 4, (3,), True)
    again = Dataset.blank(text.form())
    assert (again.shape, again.num_classes, again.targets) == ((3,), 4, "positions")
    assert again.shape.vocabulary == 4


@pytest.mark.parametrize(
    ("targets", "y", "told"),
    [
        ("real", [1.0, math.nan, 2.0], "1 of 3 training targets are NaN or infinite, first example 1"),
        ("real", ["a", "b", "c"], "expected numbers"),
        ("labels", [[0, 1], [1, 2], [1, 0]], "rows [n, L] of 0 and 1"),
        ("labels", [0, 1, 0], "rows [n, L] of 0 and 1"),
        ("positions", [[0.5, 1.0]] * 3, "whole numbers [n, T]"),
        ("positions", [[IGNORED, IGNORED]] * 3, "whole numbers [n, T]"),
    ],
)
def test_targets_of_another_kind_are_one_line(targets, y, told):
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match="dataset") as error:
        Dataset.of((x, y), (x, y), targets=targets)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dataset_checks_tensors_that_are_given_as_they_are():
    some = Examples(torch.randn(3, 2), torch.tensor([[1.0], [2.0], [math.inf]]))
    with pytest.raises(ValueError, match="expected real numbers"):
        Dataset(some, some, 1, (0.0,), (1.0,), "real")
