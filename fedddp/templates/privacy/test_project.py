"""Quick checks of the project: pytest"""

from pathlib import Path

import pytest
import torch
from model import Net

import fedddp

CONFIG = Path(__file__).with_name("config.toml")
pytest.importorskip("opacus", reason="epsilon needs it: pip install 'fedddp[privacy]'")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fedddp.run(CONFIG, {"run.rounds": 4, "run.dir": str(tmp_path_factory.mktemp("runs"))})


def test_the_model_scores_ten_digits():
    assert Net(width=4)(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_it_stays_within_its_budget(result):
    spent = [line["epsilon"] for line in result.history]
    assert spent == sorted(spent)
    assert 7 < spent[-1] <= 8


def test_it_learns_in_spite_of_the_noise(result):
    assert result.summary["final_test_accuracy"] > 0.3  # three times as good as guessing


def test_a_smaller_epsilon_needs_more_noise(tmp_path):
    noise = []
    for epsilon in (1.0, 8.0):
        experiment = fedddp.assemble(CONFIG, {"run.dir": str(tmp_path), "privacy.target_epsilon": epsilon})
        noise.append(experiment.prepared.config.privacy.noise_multiplier)
        experiment.close()
    assert noise[0] > 3 * noise[1]
