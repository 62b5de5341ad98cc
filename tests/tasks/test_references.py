"""Federated runs against scikit-learn's models of the pooled data, and metrics against its own on the same scores."""

import pytest
import torch

import fedddp
from fedddp.data.datasets import from_class
from fedddp.data.tables import table

reference = pytest.importorskip("sklearn.metrics")
pytest.importorskip("pyarrow")

from examples.small_data import WEIGHT_DECAY, DigitProperties, write  # noqa: E402

HOSPITALS = {"name": "natural", "num_clients": 5}


def trained(tmp_path, dataset, task, partition, model, **client):
    config = {
        "task": {"name": task},
        "data": {"partition": partition},
        "model": {"name": model},
        "client": client,
        "run": {"rounds": 40, "threads": 1, "dir": str(tmp_path), "name": task},
        "evaluate": {"every": 0},
        "checkpoint": {"every": 0},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    return fedddp.run(config, dataset=dataset)


def read(folder, name, targets):
    """A table as the command line reads it."""
    columns = {"target": "target", "owner": "hospital", "test_column": "part"}
    return table(folder, False, targets, file=f"{name}.csv", **columns)


@pytest.mark.parametrize("seed", range(5))
def test_hospitals_rank_patients_as_the_logistic_regression_of_all_their_rows(tmp_path, seed):
    """Which hospital a row belongs to and which rows are the test set differ with the seed."""
    expected = write(tmp_path, seed)["cancer"]
    optimizer = {"lr": 0.05, "weight_decay": WEIGHT_DECAY}
    data = read(tmp_path, "cancer", "class")
    result = trained(
        tmp_path, data, "binary", HOSPITALS, "logistic", local_epochs=5, batch_size=16, optimizer=optimizer
    )
    assert result.summary["final_test_auroc"] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_hospitals_predict_as_the_linear_regression_of_all_their_rows(tmp_path, seed):
    expected = write(tmp_path, seed)["diabetes"]
    data = read(tmp_path, "diabetes", "real")
    result = trained(tmp_path, data, "regression", HOSPITALS, "logistic", batch_size=10, optimizer={"lr": 0.02})
    assert result.summary["final_test_r2"] == pytest.approx(expected, abs=0.02)
    predicted = result.module(data.test.x).detach() * data.target_std[0] + data.target_mean[0]
    error = reference.mean_absolute_error(data.test.y.numpy(), predicted.numpy())
    assert result.summary["final_test_mae"] == pytest.approx(error, rel=1e-4)


def test_labels_of_digits_are_scored_as_scikit_learn_scores_them(tmp_path):
    data = from_class(DigitProperties, tmp_path, False, "labels")
    result = trained(tmp_path, data, "multilabel", {"num_clients": 5}, "mlp", optimizer={"lr": 0.1})
    with torch.no_grad():
        scores, y = result.module(data.test.x).numpy(), data.test.y.numpy()
    found = {name: result.summary[f"final_test_{name}"] for name in ("auroc", "f1", "accuracy")}
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, scores, average="macro"), abs=1e-3)
    assert found["f1"] == pytest.approx(reference.f1_score(y, scores > 0, average="macro"), abs=1e-3)
    assert found["accuracy"] == pytest.approx(float(((scores > 0) == y).mean()), abs=1e-3)
    assert found["auroc"] > 0.98
