"""fedddp plan: what it says of bytes is what a run sends, and what it says of links follows from it."""

import json
import os

import pytest

import fedddp
from fedddp.api import configured
from fedddp.cli.main import main
from fedddp.cli.plan.links import Exchange
from fedddp.config import to_toml
from fedddp.federation import federate

SMALL = {
    "model": {"name": "mlp", "hidden": 8},
    "data": {"name": "synthetic", "args": {"num_train": 240, "num_test": 40}, "partition": {"num_clients": 12}},
    "cohort": {"size": 8},
    "telemetry": {"tensorboard": False, "progress": "off"},
    "run": {"rounds": 2, "threads": 1, "device": "cpu"},
}
WAYS = {
    "plain": {},
    "exact sums": {"aggregation": {"sum": "exact"}},
    "two vectors": {"algorithm": "scaffold"},
    "a part of the model": {"algorithm": "fedper"},
    "int8": {"aggregation": {"compression": {"name": "int8"}}},
    "top_k": {"aggregation": {"compression": {"name": "top_k"}}, "cohort": {"size": 12}},  # as many on each home rank
    "random_k": {"aggregation": {"compression": {"name": "random_k"}}},
    "power_sgd": {"aggregation": {"compression": {"name": "power_sgd"}}},
    "median": {"aggregation": {"rule": {"name": "median"}}},
    "krum": {"aggregation": {"rule": {"name": "krum"}}, "attack": {"name": "sign_flip", "num_clients": 1}},
    "example level": {"privacy": {"level": "example", "noise_multiplier": 1.0, "delta": 1e-3}},
    "client level": {"privacy": {"level": "client", "noise_multiplier": 1.0, "delta": 1e-3}},
    "fragments": {"algorithm": {"name": "streaming_diloco", "fragments": 2}, "client": {"local_steps": 2}},
    "rank 0 evaluates": {"evaluate": {"where": "rank0"}},
}


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def toml_of(folder, more):
    path = folder / "small.toml"
    path.write_text(to_toml(configured(SMALL, **more)))
    return str(path)


def planned(capsys, *words):
    assert main(["plan", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def bytes_of_a_round(comm, folder, more):
    """What this rank sends in the second round, as metrics.jsonl has it."""
    place = {"RANK": comm.rank, "WORLD_SIZE": 2, "LOCAL_RANK": comm.rank, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in place.items()})
    more = {**more, "run": {"dir": folder}}
    experiment = fedddp.assemble(SMALL, comm=comm, **more)
    federate(experiment.federation, experiment.server)
    experiment.close()
    return experiment.federation.telemetry.history[1]["bytes_sent"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_of_a_round_are_those_that_a_run_sends(way, run_ranks, tmp_path, capsys):
    plan = planned(capsys, toml_of(tmp_path, WAYS[way]), "-n", "2", "--no-timing")
    sent = run_ranks(bytes_of_a_round, 2, str(tmp_path), WAYS[way])
    assert plan["bytes_sent"] == sent[0] == sent[1]


def test_masked_sums_are_counted_without_their_parties(tmp_path, capsys):
    masked = {"privacy": {"secure_aggregation": {"enabled": True, "min_clients": 2}}}
    plain, hidden = (
        planned(capsys, toml_of(tmp_path, more), "-n", "4", "--no-timing")
        for more in ({"aggregation": {"sum": "exact"}}, masked)
    )
    assert hidden["masked"]
    assert not plain["masked"]
    assert hidden["bytes_sent"] == pytest.approx(plain["bytes_sent"], rel=0.02)  # 8 bytes a number, like exact sums


def test_ranks_share_a_ring(tmp_path, capsys):
    config = toml_of(tmp_path, {"evaluate": {"where": "rank0"}})
    sent = {n: planned(capsys, config, "-n", str(n), "--no-timing")["bytes_sent"] for n in (1, 2, 8)}
    assert sent[1] == 0
    assert sent[8] == pytest.approx(1.75 * sent[2], rel=0.01)  # 2 (R - 1) / R of the vector


def test_a_round_is_timed_and_a_run_estimated(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = toml_of(tmp_path, {"run": {"rounds": 20}})
    plan = planned(capsys, config, "--link=1,1000")
    slow, fast = plan["links"]
    assert plan["local_steps"] == 2
    assert plan["step_seconds"] > 0
    assert slow["communication_seconds"] == pytest.approx(8 * plan["bytes_sent"] / 1e6)
    assert slow["run_seconds"] == pytest.approx(20 * slow["round_seconds"])
    assert 0 < slow["utilisation"] < fast["utilisation"] < 1
    assert os.listdir() == ["small.toml"]  # nothing is written


@pytest.mark.parametrize("more", [{"algorithm": "ditto"}, {"algorithm": "moon"}, WAYS["example level"]], ids=str)
def test_clients_that_train_otherwise_are_timed_too(more, tmp_path, capsys):
    assert planned(capsys, toml_of(tmp_path, more))["training_seconds"] > 0


def test_memory_has_frozen_parts_and_what_clients_remember(tmp_path, capsys):
    config = toml_of(tmp_path, {"algorithm": "scaffold"})
    plan = planned(capsys, config, "--no-timing")
    size, held = 4 * plan["parameters"], plan["memory_estimated"]
    assert plan["vector_bytes"] == 2 * size
    assert held["what clients remember"] == 6 * size  # 12 clients on 2 ranks
    assert held["sum and mean of a round"] == 2 * 2 * size
    plan = planned(capsys, toml_of(tmp_path, {"model": {"trainable": ["*.bias"]}}), "--no-timing")
    assert plan["parameters"] < 100
    assert 4 * (plan["parameters"] + plan["frozen"]) == size
    assert plan["memory_estimated"]["model, for training and for evaluation"] == 2 * size


def test_data_that_are_not_here_are_not_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["mnist/fedavg", "-n", "4", "--no-timing"]
    plan = planned(capsys, *words)
    assert plan["blank_data"]
    assert plan["local_steps"] == 60
    assert plan["parameters"] == 1_663_370
    assert main(["plan", *words]) == 0
    printed = capsys.readouterr().out
    assert "not on this machine" in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert os.listdir() == []


def test_sizes_agree_with_the_worked_example_of_maxtexts_documentation(capsys):
    """An 8B-parameter model in bf16, H = 37, 0.5 s a step: 14 Gbit/s on average, 512 at the peak."""
    words = ["--parameters=8e9", "--dtype=bfloat16", "--step-seconds=0.5", "--local-steps=37"]
    plain, streaming = planned(capsys, *words), planned(capsys, *words, "--fragments=37")
    assert plain["bytes_sent"] == 32e9
    assert plain["peak_mbit"] == pytest.approx(512e3)
    assert plain["average_mbit"] == pytest.approx(streaming["average_mbit"]) == pytest.approx(13.84e3, rel=1e-3)
    assert streaming["peak_mbit"] == pytest.approx(streaming["average_mbit"])
    assert planned(capsys, *words, "-n", "2")["bytes_sent"] == 16e9


@pytest.mark.parametrize("link", [3.0, 50.0, 1000.0])
def test_h_is_the_least_with_which_communication_takes_under_a_tenth(link):
    def share(steps):
        made = Exchange(4e6, steps, 0.02, fixed=0.05)
        return made.seconds(link) / (made.seconds(link) + made.training)

    least = Exchange(4e6, 10, 0.02, fixed=0.05).least_steps(link)
    assert share(least) < 0.1
    assert least == 1 or share(least - 1) >= 0.1


@pytest.mark.parametrize(
    ("words", "front"),
    [
        (["--link=fast"], "--link"),
        (["--link=50,-1"], "--link"),
        (["--links=50"], "links"),
        (["--local-steps=5"], "--local-steps: goes with --parameters"),
        (["--step-seconds=0.1", "mnist/fedavg"], "--step-seconds: goes with --parameters"),
        (["--parameters=8e9", "mnist/fedavg"], "mnist/fedavg: a configuration"),
        (["--parameters=8e9", "--no-timing"], "--no-timing"),
        (["--parameters=many"], "--parameters"),
        (["--parameters=1e6", "--dtype=float8"], "--dtype"),
        (["-n", "0"], "-n"),
        (["--model.name=nope"], "model.name"),
    ],
)
def test_a_mistake_is_one_line(words, front, capsys):
    assert main(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert front in err
    assert err.startswith("fedddp: ")
    assert err.count("\n") == 1
