"""python -m benchmarks.gpu: its arithmetic, and all of it but the tests on a CPU."""

import json
import sys

import pytest
import torch

from benchmarks import gpu, limits
from benchmarks.contenders.models import MODELS
from benchmarks.limits import Limits, Work

CARD = Limits(bytes=1e12, flops=1e13)


def record(**contenders):
    job = {"model": "logistic", "cohort": 10, "epochs": 2, "batch_size": 5, "ranks": 1}
    rounds = {
        name: [{"train": s, "total": 2 * s, "clients": 10} for s in seconds] for name, seconds in contenders.items()
    }
    outcomes = {name: {"rounds": r, "reason": None if r else "gone"} for name, r in rounds.items()}
    return {"workload": job, "examples_each": [11, 13], "contenders": outcomes}


def test_work_is_counted_by_layer():
    """Of the first layer there is no gradient of the input to make."""
    job = {"clients": 3, "examples": 7, "epochs": 2, "batch_size": 5}
    work = limits.of_training(MODELS["mlp"](), (1, 28, 28), **job)
    assert work.bytes == 3 * 2 * 2 * 3 * 4 * 199_210
    assert work.flops == 3 * 7 * 2 * (4 * 784 * 200 + 6 * (200 * 200 + 200 * 10))
    cnn = limits.of_training(MODELS["cnn"](), (1, 28, 28), **job)
    layers = 4 * 25 * 32 * 784 + 6 * (25 * 32 * 64 * 196 + 3136 * 512 + 512 * 10)
    assert (cnn.bytes, cnn.flops) == (3 * 2 * 2 * 3 * 4 * 1_663_370, 3 * 7 * 2 * layers)


def test_the_slower_of_the_two_is_the_limit():
    assert (CARD.seconds(Work(10**12, 10**12)), CARD.bound(Work(10**12, 10**12))) == (1.0, "memory")
    assert (CARD.seconds(Work(10**11, 10**13)), CARD.bound(Work(10**11, 10**13))) == (1.0, "arithmetic")


def test_a_row_compares_with_the_limit_and_with_fedddp():
    first, slow, gone = gpu.rows(record(fedddp=[0.1, 0.2, 0.1], pytorch=[0.2, 0.6, 0.4], pfl=[]), CARD)
    work = limits.of_training(MODELS["logistic"](), gpu.IMAGE, clients=10, examples=12, epochs=2, batch_size=5)
    assert first["of the limit"] == pytest.approx(CARD.seconds(work) / 0.1)
    assert (first["faster"], slow["faster"]) == (1.0, pytest.approx(3.0))
    assert (slow["train"], slow["total"], slow["clients/s"]) == (0.4, 0.8, pytest.approx(10 / 0.8))
    assert (gone["reason"], "train" in gone) == ("gone", False)
    assert list(gpu.rows(None, CARD)) == []


def test_limits_are_bytes_read_and_written_and_operations_per_second(monkeypatch):
    """The fastest of three goes counts, the first of all is left out; a go is ten of the work."""
    monkeypatch.setitem(limits.SIZES, "cpu", (2**20, 64))
    works, now, seconds = [], [0.0], iter([0.1, 4.0, 2.0, 3.0, 0.1, 8.0, 16.0, 32.0])
    copy, multiply = torch.Tensor.copy_, torch.mm
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *args: works.append("copy") or copy(*args))
    monkeypatch.setattr(torch, "mm", lambda *args: works.append("product") or multiply(*args))

    def clock(device):
        """At the end of a go its seconds have passed."""
        now[0] += next(seconds) if len(works) % 10 == 0 and len(works) > clock.seen else 0.0
        clock.seen = len(works)
        return now[0]

    clock.seen = 0
    monkeypatch.setattr(limits, "_now", clock)
    found = limits.measured(torch.device("cpu"))
    assert works == ["copy"] * 40 + ["product"] * 40
    assert (found.bytes, found.flops) == (pytest.approx(2 * 2**20 / 0.2), pytest.approx(2 * 64**3 / 0.8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == f"benchmarks.gpu: torch {torch.__version__} sees no GPU on this machine\n"


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "tested", lambda: ("9 skipped", True))
    words = ["--device", "cpu", "--workloads", "w2", "--against", "pfl", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *words, "--peers", str(tmp_path)])
    assert gpu.main() == 0
    (kept,) = tmp_path.glob("gpu-*.json")
    found = json.loads(kept.read_text())
    names = [(row["name"], row["ranks"]) for row in found["workloads"]["w2"]]
    assert names == [("fedddp", 1), ("pfl", 1), ("fedddp", 2)]
    assert all(row["of the limit"] > 0 for row in found["workloads"]["w2"] if row["name"] != "pfl")
    told = capsys.readouterr().out[-3000:].splitlines()
    table = told[[i for i, line in enumerate(told) if "fedddp is faster" in line][-1] - 1 :]
    assert len(table) <= 25
    assert any("w2 pfl" in line and "not available" in line for line in table)
    assert "tests/gpu: 9 skipped" in table
