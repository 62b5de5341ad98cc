"""The lines at the start of a run."""

import re

import pytest
from rich.filesize import decimal

import fedddp
from fedddp.federation import federate
from fedddp.setup.banner import banner
from tests.helpers.distributed import configured, experiment_of
from tests.helpers.inputs import Kind


def rows(text):
    return dict(re.fullmatch(r"  (\w+) +(.*)", line).groups() for line in text.splitlines()[1:])


def test_a_run_says_what_it_trains_before_the_first_round(tmp_path, capsys):
    fedddp.run(
        {"run.dir": str(tmp_path), "telemetry.tensorboard": False, "telemetry.progress": "lines"},
        dataset=Kind((4,)).dataset(num_train=60),
        data={"partition": {"num_clients": 4}},
        cohort={"size": 2},
        model={"name": "mlp", "hidden": 3, "trainable": ["*.weight"]},
        rounds=1,
        threads=1,
        device="cpu",
    )
    text, _, after = capsys.readouterr().out.partition("round 1/1")
    found = rows("\n".join(text.splitlines()[:-1]))
    assert after
    assert max(map(len, text.splitlines())) <= 80
    parameters = re.fullmatch(r"mlp, (\d+) parameters trained, (\d+) frozen", found["model"])
    trained, frozen = map(int, parameters.groups())
    assert trained > frozen > 0
    assert found["data"] == "given, 60 examples; 15 a client"
    assert found["clients"] == "4, 2 of them per round"
    assert found["training"] == "fedavg, 1 round; 1 epoch, batches of 10, lr 0.1"
    assert found["ranks"] == "1 on cpu, 1 thread each"
    assert found["upload"] == f"{decimal(4 * trained)} per client; one rank sends nothing"


def test_nothing_is_printed_where_progress_is_off(tmp_path, capsys):
    quiet = {"run.dir": str(tmp_path), "telemetry.tensorboard": False, "telemetry.progress": "off"}
    fedddp.run(quiet, dataset=Kind((4,)).dataset(), model="mlp", rounds=1)
    assert capsys.readouterr().out == ""


def announced(comm, table):
    experiment = experiment_of(comm, table)
    text = banner(experiment) if comm.rank == 0 else ""
    federate(experiment.federation, experiment.server)
    return text, experiment.federation.telemetry.history[1]["sent"]["aggregate"]


@pytest.mark.parametrize("sections", [{}, {"algorithm": {"name": "scaffold"}}, {"aggregation": {"sum": "exact"}}])
def test_the_bytes_of_a_round_are_those_that_are_sent(sections, tmp_path, run_ranks):
    table = configured(tmp_path, model={"hidden": 200}, data__partition={"num_clients": 3}, **sections)
    text, sent = run_ranks(announced, 3, table)[0]
    told, unit = re.search(r"each rank sends ([\d.]+) (kB|MB) per round$", rows(text)["upload"]).groups()
    assert float(told) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(sent, rel=0.05)


def test_what_depends_on_the_round_is_not_predicted(tmp_path, run_ranks):
    table = configured(tmp_path, aggregation={"compression": {"name": "top_k"}})
    text, _ = run_ranks(announced, 2, table)[0]
    assert rows(text)["upload"].endswith("follow after round 2")
