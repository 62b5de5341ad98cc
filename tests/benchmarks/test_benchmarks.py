"""The benchmarks' own arithmetic and the life of a contender; what they measure is not tested."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import contender, machine, report, run, workloads
from benchmarks.contender import Contender, Outcome
from benchmarks.contenders.fedddp import configuration
from benchmarks.contenders.protocol import Workload
from fedddp.comm import Place
from fedddp.config import UsageError
from fedddp.data import Partition
from tests.helpers.support import few_digits

FAKE = """
import json, sys
print(json.dumps({"ready": True, "version": "1"}), flush=True)
for number, line in enumerate(sys.stdin):
    if line.strip() == "quit" or number == int(sys.argv[2]):
        break
    print(json.dumps({"train": 1.0, "evaluate": 0.0, "total": 2.0, "clients": 4, "accuracy": None}), flush=True)
if line.strip() != "quit":
    raise ValueError("no more")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """``fake(name, rounds)``: a contender that dies after so many rounds."""
    monkeypatch.setattr(contender, "SCRIPTS", tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    return lambda name, rounds: Contender(name, "fake", Path(sys.executable), tmp_path, [str(rounds)], 1)


def outcome(*seconds):
    rounds = [{"train": s, "evaluate": 0.0, "total": 2 * s, "clients": 10, "accuracy": None} for s in seconds]
    return Outcome(rounds=rounds, starts=[1.0], peak_mib=[50.0, 60.0])


def settings(name="w2", **more):
    how = {"ranks": 2, "threads": 1, "device": "cpu", "repeats": 3, "examples": None}
    return workloads.WORKLOADS[name].settings(**(how | more))


def test_ratios_are_of_the_same_repeat_as_far_as_both_came():
    found = report.ratios(
        {"a": outcome(1, 2, 3), "b": outcome(2, 2), "c": Outcome(reason="gone")}, ["train", "clients/s"]
    )
    assert list(found) == ["b"]
    assert found["b"]["train"] == {"median": 0.75, "min": 0.5, "max": 1.0, "each": [0.5, 1.0]}
    assert found["b"]["clients/s"]["each"] == [2.0, 1.0]


def test_a_contender_that_dies_costs_itself_only(fake):
    contenders = [fake("lasts", 9), fake("dies", 2)]
    run.measure(contenders, repeats=3, starts=2, say=lambda text: None)
    lasts, dies = (c.outcome for c in contenders)
    assert (len(lasts.rounds), len(lasts.starts), lasts.reason) == (3, 2, None)
    assert (len(dies.rounds), dies.reason) == (1, "ValueError: no more")
    assert lasts.warm_up
    assert lasts.peak_mib[0] > 1


def test_a_program_that_is_not_there_is_said_so(tmp_path):
    contender = Contender("x", "x", tmp_path / "no-python", tmp_path, [], 1)
    contender.start()
    contender.round()
    assert "no-python" in str(contender.outcome.reason)


def test_arrays_hold_each_clients_examples(tmp_path):
    dataset = few_digits(10)
    partition = Partition.dealt(np.array([3, 1, 2, 9, 0]), np.array([2, 3]))
    workloads.write_arrays(tmp_path, dataset, partition)
    workloads.write_settings(tmp_path, settings())
    first, second = Workload.read(tmp_path).clients()
    assert torch.equal(first[1], dataset.train.y[[3, 1]])
    assert torch.equal(second[1], dataset.train.y[[2, 9, 0]])
    assert first[0].mean().item() == pytest.approx(
        (dataset.train.x[[3, 1]].float().mean().item() / 255 - 0.1307) / 0.3081
    )


def test_workloads_are_configurations_with_overrides_on_top():
    populations = {}
    for name, workload in workloads.WORKLOADS.items():
        for words in workload.variants.values():
            config = configuration(settings(name), [*words, "--run.seed=5"], Place(world_size=2))
            assert (config.run.seed, config.run.rounds) == (5, 4)
            populations.setdefault(name, []).append(config.data.partition.num_clients)
    expected = {"w1": [100], "w2": [1000], "w3": [2], "lr_mnist": [1000], "million": [1_000_000, 10_000]}
    expected |= {"text": [80], "gpt": [80]}
    assert populations == expected


def test_a_record_is_not_overwritten_and_names_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--data.root=/somewhere/data"])
    described = machine.describe(["/somewhere/data"])
    assert described["command"].endswith("--data.root=data")
    first, second = (machine.keep(tmp_path, "w2", {"machine": described}) for _ in range(2))
    assert second.name == first.name.replace(".json", "-2.json")
    assert json.loads(second.read_text())["machine"]["cores"] >= 1


@pytest.mark.slow
def test_fedddp_plain_pytorch_and_another_checkout_run_side_by_side(tmp_path, monkeypatch):
    here = Path(run.__file__).parents[1]
    words = ["--workload", "w2", "--against", "pytorch", "--checkout", str(here), "--ranks", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["run", *words, "--out", str(tmp_path)])
    assert run.main() == 0
    (kept,) = tmp_path.glob("w2-*.json")
    record = json.loads(kept.read_text())
    assert {name: len(c["rounds"]) for name, c in record["contenders"].items()} == {
        "fedddp": 1,
        "pytorch": 1,
        "checkout": 1,
    }
    assert record["ratios"]["pytorch"]["clients/s"]["median"] > 0
    assert kept.with_suffix(".png").exists()


def test_a_checkout_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--checkout"):
        run.compare(run.arguments("--workload", "w2", "--checkout", str(tmp_path)), run.a_console())
