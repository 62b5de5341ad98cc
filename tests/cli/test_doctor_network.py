"""fedddp doctor: names, ports, clocks and folders of several machines, and the file for whoever helps."""

import json
import socket
from pathlib import Path

import pytest

from fedddp.cli.doctor import bundle, network
from fedddp.cli.doctor.finding import Finding
from fedddp.comm import Place
from fedddp.config import build
from tests.helpers import ranks
from tests.helpers.commands import command

main = command("doctor")
ALONE = Place()
TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "192.0.2.7"}


def found(place=ALONE, env=None, **sections):
    return {f.about: f for f in network.findings(build(sections), place, env or {})}


def test_a_name_that_is_a_loopback_address_is_warned_of_where_others_would_use_it(monkeypatch):
    monkeypatch.setattr(network, "is_loopback", lambda host: True)
    assert found()["host name"].level == "ok"
    assert network._name(Place(0, 2, 0, 1), TWO).level == "warn"
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert network._name(Place(), {}).level == "warn"


@pytest.mark.parametrize(("job", "count"), [("none", 1), ("fedddp", 1), ("mine", 0), ("", 0)])
def test_the_default_name_of_a_job_is_warned_of(job, count):
    assert len(list(network._job(Place(0, 2, 0, 1, job=job), TWO))) == count


def test_a_port_that_is_taken_fails_on_the_rank_that_would_listen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {**TWO, "MASTER_PORT": str(taken.getsockname()[1])}
        assert network._ports(Place(0, 2, 0, 1), env).level == "fail"
        assert network._ports(Place(1, 2, 0, 1), env).level == "ok"
        assert network._ports(Place(0, 2, 0, 1), {**env, "TORCHELASTIC_USE_AGENT_STORE": "True"}).level == "ok"


def test_a_machine_that_does_not_come_is_a_finding(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    told = found(Place(0, 2, 0, 1), TWO, run={"timeout": 0.5})["machines"]
    assert told.level == "fail"
    assert "rank 1 never came" in told.found


def looked(comm, folder, apart):
    import time

    true = time.time
    network.time.time = lambda: true() + apart * comm.rank
    own = Path(folder) if comm.rank == 0 or not apart else Path(folder) / "other"
    own.mkdir(exist_ok=True)
    return [(f.about, f.level, f.found) for f in network.compared(comm, own)]


@pytest.mark.parametrize(
    ("apart", "level", "shared"), [(0, "ok", "one folder for all"), (60, "warn", "of each machine")]
)
def test_clocks_and_folders_of_machines_are_compared(tmp_path, apart, level, shared):
    for found in ranks.run(tmp_path, looked, 2, str(tmp_path), apart):
        told = {about: (level, said) for about, level, said in found}
        assert told["clocks"][0] == level
        assert shared in told["run.dir"][1]
    assert not list(tmp_path.glob(".fedddp-doctor-*"))


def test_a_bundle_has_no_secrets(tmp_path, monkeypatch):
    env = {
        "RANK": "0",
        "NCCL_DEBUG": "INFO",
        "NCCL_AUTH_TOKEN": "a",
        "MASTER_ADDR": "10.0.0.1",
        "TORCH_PROXY": "http://me:word@proxy:1",
        "GLOO_X": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2Vj",
        "HOME": "/home/me",
        "WANDB_API_KEY": "b",
    }
    keys = {"privacy": {"secure_aggregation": {"enabled": True, "key": "k.key", "roster": "r.toml"}}}
    bundle.write(tmp_path / "report.json", [Finding("a", "ok", "b")], build(keys), Place(), env)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["variables"] == {
        "RANK": "0",
        "NCCL_DEBUG": "INFO",
        "MASTER_ADDR": "10.0.0.1",
        **dict.fromkeys(("NCCL_AUTH_TOKEN", "TORCH_PROXY", "GLOO_X"), bundle.HIDDEN),
    }
    assert report["configuration"]["privacy.secure_aggregation.roster"] == "r.toml"
    assert "k.key" not in json.dumps(report)
    assert report["findings"] == [{"about": "a", "level": "ok", "found": "b", "remedy": ""}]


def test_a_bundle_that_cannot_be_written_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedddp.cli.doctor.report.findings", lambda *_: [])
    monkeypatch.setattr("fedddp.cli.doctor.report.measure", lambda *_: None)
    assert main([f"--bundle={tmp_path}/none/report.json"]) == 1
    assert "cannot be written" in capsys.readouterr().err
