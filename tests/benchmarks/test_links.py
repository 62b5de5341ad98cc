"""The benchmarks of links and of the exchange: what they refuse, and a round as the main loop has it."""

import sys

import pytest
import torch

from benchmarks import exchange, links
from fedddp.aggregation import DriftTally, FastSum, Pipeline
from fedddp.algorithms import FedAvg
from fedddp.comm import Comm
from fedddp.types import Cohort
from tests.helpers.support import flat


@pytest.mark.parametrize("lacks", ["root", "tc"])
def test_namespaces_need_root_and_the_tools(lacks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["links"])
    monkeypatch.setattr(links.os, "geteuid", lambda: 1000 if lacks == "root" else 0)
    monkeypatch.setattr(links.shutil, "which", lambda name: None if name == lacks else f"/sbin/{name}")
    with pytest.raises(SystemExit):
        links.main()
    assert lacks in capsys.readouterr().err


def test_an_exchange_adds_the_mean_and_looks_at_memory_after_each_phase():
    algorithm, comm = FedAvg(), Comm.alone()
    server = algorithm.init_server(torch.zeros(6), flat(6))
    pipeline = Pipeline({"delta": 6}, FastSum(torch.float32, "cpu"), torch.full((3,), 10), comm, tally=DriftTally)
    peaks = []
    cohort, delta = Cohort(0, (0, 1, 2), 3), torch.full((1, 6), 0.5)
    moved = exchange._round(pipeline, algorithm, server, cohort, range(3), delta, peaks)
    assert moved.w.tolist() == [0.5] * 6
    assert len(peaks) == len(exchange.PHASES)
    assert peaks == sorted(peaks)
