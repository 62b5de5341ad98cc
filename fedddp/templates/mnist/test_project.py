"""Quick checks of the project: pytest"""

from pathlib import Path

import torch
from model import Net

import fedddp

CONFIG = Path(__file__).with_name("config.toml")


def test_the_model_scores_ten_digits():
    assert Net(width=8)(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_it_learns(tmp_path):
    result = fedddp.run(CONFIG, {"run.rounds": 3, "run.dir": str(tmp_path)})
    assert result.summary["final_test_accuracy"] > 0.2  # twice as good as guessing
    assert result.history[0]["participants"] == 5


def test_the_clients_have_few_digits(tmp_path):
    experiment = fedddp.assemble(CONFIG, {"run.dir": str(tmp_path)})
    counts = experiment.prepared.output.counts.counts  # [clients, digits]
    experiment.close()
    assert counts.sum() == 10_000
    assert (counts > 0).sum(axis=1).max() <= 4
