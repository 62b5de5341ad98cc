"""Quick checks of the project: pytest"""

from pathlib import Path

import numpy as np
import pytest
import torch
from data import Patients
from model import Risk

import fedddp

CONFIG = Path(__file__).with_name("config.toml")


def test_every_row_has_an_owner():
    train, test = Patients(None, True, False), Patients(None, False, False)
    assert len(train.data) == len(train.targets) == len(train.client_ids)
    assert {*train.client_ids} == set("ABCDE")
    assert len(train.data) + len(test.data) == 1500
    assert np.abs(train.data).max() < 10  # in usual spreads


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_model_gives_one_score(hidden):
    assert Risk(hidden)(torch.zeros(3, 4)).shape == (3, 1)


def test_the_hospitals_find_what_all_rows_together_give(tmp_path):
    here, one = {"run.dir": str(tmp_path)}, {"data.partition.name": "iid", "data.partition.num_clients": 1}
    together = fedddp.run(CONFIG, here, name="together")
    pooled = fedddp.run(CONFIG, here, one, name="pooled")
    ours, theirs = (run.summary["final_test_auroc"] for run in (together, pooled))
    assert ours > 0.75
    assert ours == pytest.approx(theirs, abs=0.02)
