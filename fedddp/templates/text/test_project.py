"""Quick checks of the project: pytest"""

from pathlib import Path

import pytest
import torch
from model import CHARACTERS, Net
from write import continued

import fedddp

CONFIG = Path(__file__).with_name("config.toml")


def test_a_score_for_each_character_at_each_position():
    assert Net(hidden=8)(torch.ones(2, 5, dtype=torch.long)).shape == (2, 5, CHARACTERS)


def test_a_position_does_not_know_what_comes_behind_it():
    net, x = Net(hidden=8), torch.randint(1, CHARACTERS, (1, 6))
    later = x.clone()
    later[0, 4:] = 3
    assert torch.equal(net(x)[:, :4], net(later)[:, :4])
    assert not torch.equal(net(x)[:, 4:], net(later)[:, 4:])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return fedddp.run(CONFIG, {"run.rounds": 2, "run.dir": str(folder), "cohort.size": 4})


def test_it_learns(result):
    assert result.summary["final_test_perplexity"] < 40  # guessing: 97


def test_it_writes(result):
    assert len(continued(str(result.folder), "To be, or ", length=20)) == 30
