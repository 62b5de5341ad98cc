"""Runs on token sequences with the models that read them: exact sums, privacy, resume."""

import pytest

import fedddp
from fedddp.data import Dataset
from tests.tasks.test_targets import sequences

MODELS = {
    "lstm": {"name": "lstm", "embedding": 4, "hidden": 8, "layers": 1},
    "gpt": {"name": "gpt", "width": 8, "layers": 1, "heads": 2},
    "gpt, tied": {"name": "gpt", "width": 8, "layers": 1, "heads": 2, "tied": True},
}


def run(tmp_path, model, rounds=4, **sections):
    x, y = sequences()
    base = {
        "task": {"name": "next_token"},
        "model": MODELS[model],
        "data": {"partition": {"num_clients": 4}},
        "run": {"rounds": rounds, "dir": str(tmp_path), "name": "text"},
        "client": {"batch_size": 5, "optimizer": {"lr": 0.5}},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    return fedddp.run(base, sections, dataset=Dataset.of((x[:60], y[:60]), (x[60:], y[60:]), targets="positions"))


HOW = {
    "plain": {},
    "exact": {"aggregation.sum": "exact"},
    "client-level privacy": {"privacy.level": "client", "privacy.noise_multiplier": 0.01, "privacy.delta": 0.01},
    "example-level privacy": {"privacy.level": "example", "privacy.noise_multiplier": 0.01, "privacy.delta": 0.001},
    "scaffold": {"algorithm.name": "scaffold"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("model", MODELS)
def test_sequences_are_learned(tmp_path, model, how):
    result = run(tmp_path, model, **HOW[how])
    losses = [metrics["test_loss"] for metrics in result.history]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("how", ["plain", "exact", "scaffold"])
@pytest.mark.parametrize("model", ["lstm", "gpt"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, model, how):
    whole = run(tmp_path / "whole", model, **HOW[how])
    run(tmp_path / "parts", model, rounds=2, **HOW[how])
    resumed = run(tmp_path / "parts", model, **HOW[how], **{"run.resume": "auto"})
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
