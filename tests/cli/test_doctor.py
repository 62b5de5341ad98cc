"""fedddp doctor: what it finds in files and environments; the plane itself is measured once, for real."""

import os
import re
import socket

import pytest

from fedddp.cli.doctor import probe as plane
from fedddp.cli.doctor import report as doctor
from fedddp.cli.doctor.probe import Measured
from fedddp.cli.doctor.report import findings
from fedddp.comm import Place
from fedddp.comm.world import ELSEWHERE, SPANS_HOSTS, own_address, spans_hosts
from fedddp.config import build
from tests.helpers.commands import command

main = command("doctor")
keygen = command("keygen")
split = command("split")

HERE = Measured(("::",), ("127.0.0.1",), True, "192.0.2.2", no_tls="unsupported gloo device")
ALONE, THREE = Place(), Place(rank=1, world_size=3, local_rank=0, local_world_size=1)
ENV = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1"}


def found(place=ALONE, env=None, measured=HERE, **sections):
    return {f.about: f for f in findings(build(sections), place, env or {}, measured)}


@pytest.fixture(autouse=True)
def no_others(monkeypatch):
    """Other machines are the part of test_doctor_network.py."""
    monkeypatch.setattr(doctor.network, "findings", lambda *_: ())


def secure(**keys):
    return {"privacy": {"secure_aggregation": {"enabled": True, **keys}}}


@pytest.fixture
def keys(tmp_path, capsys):
    assert keygen(["--parties", "3", "--out", str(tmp_path / "keys")]) == 0
    return tmp_path / "keys"


@pytest.mark.parametrize(
    ("place", "env", "expected"),
    [
        (Place(), {}, False),
        (Place(0, 4, 0, 4), {"LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"}, False),  # torchrun says: all here
        (Place(0, 4, 0, 2), {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, True),
        (Place(0, 4, 0, 4), {"MASTER_ADDR": "127.0.0.1"}, False),
        (Place(0, 4, 0, 4), {"MASTER_ADDR": "localhost"}, False),
        (Place(0, 4, 0, 4), {"MASTER_ADDR": "::1"}, False),
        (Place(0, 4, 0, 4), {"MASTER_ADDR": "10.0.0.1"}, True),
        (Place(0, 4, 0, 4), {}, True),
    ],
)
def test_whether_a_run_spans_hosts(place, env, expected):
    assert spans_hosts(place, env) is expected


def test_the_warning_is_one_line_with_the_key_that_silences_it():
    assert "\n" not in SPANS_HOSTS
    assert "privacy.trust_network=true" in SPANS_HOSTS


def test_the_plane_of_this_machine():
    """The real thing: the store is open to strangers where it listens, and this machine's ranks can meet."""
    measured = plane.measure({k: v for k, v in os.environ.items() if k != "MASTER_ADDR"})
    assert measured.error == ""
    assert (measured.store, measured.gloo, measured.answered) == (("127.0.0.1",), ("127.0.0.1",), False)
    assert "unsupported gloo device" in measured.no_tls


def test_the_plane_of_one_machine_of_several():
    own = own_address(ELSEWHERE)
    if not own:
        pytest.skip("this machine has a loopback interface only")
    measured = plane.measure({**os.environ, "MASTER_ADDR": own})
    assert (measured.store, measured.gloo, measured.answered) == ((own,), (own,), True)


def test_what_listens_is_read_from_proc():
    with socket.socket() as here, socket.socket(socket.AF_INET6) as everywhere:
        here.bind(("127.0.0.1", 0))
        port = here.getsockname()[1]
        assert plane.listening(port) == []
        here.listen()
        assert plane.listening(port) == [("127.0.0.1", port)]
        everywhere.bind(("::", 0))
        everywhere.listen()
        assert set(plane.listening(pids=[os.getpid()])) >= {("127.0.0.1", port), ("::", everywhere.getsockname()[1])}
        assert plane.answers("127.0.0.1", port) is None  # it never replies
    assert plane.answers("127.0.0.1", port) is False


def test_an_open_store_and_bare_messages_are_warned_of_unless_the_network_is_trusted():
    told = found(THREE, ENV)
    levels = {about: told[about].level for about in ("hosts", "store", "store, authentication", "gloo, encryption")}
    assert set(levels.values()) == {"warn"}
    assert "every interface (::)" in told["store"].found
    assert "WireGuard" in told["hosts"].remedy
    trusted = found(THREE, ENV, privacy={"trust_network": True})
    assert (trusted["hosts"].level, trusted["gloo, encryption"].level) == ("ok", "ok")
    closed = found(measured=Measured(("127.0.0.1",), ("127.0.0.1",), False, "192.0.2.2", "no"))
    assert (closed["store"].level, closed["store, authentication"].level) == ("ok", "ok")
    agent = found(env={"TORCHELASTIC_RUN_ID": "a"}, measured=Measured(("127.0.0.1",), ("127.0.0.1",), False, "", "no"))
    assert agent["store"].level == "warn"
    assert "the launcher's own listens on every interface" in agent["store"].found


def test_gloo_on_loopback_cannot_span_hosts():
    assert found()["gloo"].level == "ok"
    assert found(THREE, ENV)["gloo"].level == "fail"
    outside = Measured(("::",), ("10.0.0.2",), True, "10.0.0.2", "no")
    assert found(THREE, ENV, outside)["gloo"].level == "warn"
    assert found(measured=Measured(error="no address"))["gloo"].level == "fail"


@pytest.mark.parametrize(("ranks", "level"), [(1, "fail"), (2, "fail"), (3, "ok")])
def test_secure_aggregation_needs_three_ranks(ranks, level):
    place, env = Place(0, ranks, 0, ranks), {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    assert found(place, env, **secure())["ranks"].level == level
    assert found(place, env)["ranks"].level == "ok"


def test_keys_and_roster_are_looked_at(keys):
    files = {"roster": str(keys / "roster.toml"), "key": str(keys / "rank-{rank}.key")}
    told = found(THREE, ENV, **secure(**files))
    assert (told["roster"].level, told["key of rank 1"].level) == ("ok", "ok")
    assert "identities" not in told
    (keys / "rank-1.key").chmod(0o640)
    told = found(THREE, ENV, **secure(**files))
    assert (told["key of rank 1"].level, "chmod 600" in told["key of rank 1"].found) == ("fail", True)
    wrong = found(THREE, ENV, **secure(roster=files["roster"], key=str(keys / "rank-2.key")))
    assert wrong["key of rank 1"].level == "fail"
    assert found(Place(1, 4, 0, 1), ENV, **secure(**files))["roster"].level == "fail"
    (keys / "roster.toml").chmod(0o666)
    assert found(THREE, ENV, **secure(**files))["roster"].level == "fail"
    assert found(THREE, ENV, **secure())["identities"].level == "warn"


def test_whose_data_a_machine_holds(tmp_path, capsys):
    root = tmp_path / "parts"
    split([f"--out={root}", "--data.name=synthetic", "--data.partition.num_clients=3"])
    data = {"data": {"name": "parts", "root": str(root)}}
    assert found(THREE, ENV)["data"].found.startswith("simulation")
    assert "holds 2 clients' folders that no rank" in found(THREE, ENV, **data)["data"].found
    for other in ("client-00000", "client-00002"):
        (root / other / "train.safetensors").unlink()
    assert found(THREE, ENV, **data)["data"].level == "ok"
    assert found(env={}, **data)["data"].level == "ok"
    (root / "client-00001" / "train.safetensors").unlink()
    assert "client-00001" in found(THREE, ENV, **data)["data"].found
    assert found(THREE, ENV, data={"name": "parts", "root": "nowhere"})["data"].level == "fail"


def test_the_program_prints_a_table_once_a_machine_and_says_whether_something_failed(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "measure", lambda env: HERE)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 0
    assert re.search("warn .* store", capsys.readouterr().out)
    assert main(["--privacy.secure_aggregation.enabled=true", "--privacy.secure_aggregation.key=none.key"]) == 1
    assert re.search("fail .* key of rank 0", capsys.readouterr().out)
    assert main(["--help"]) == 0
    assert "--section.key=value" in capsys.readouterr().out
    assert main(["--run.ronds=3"]) == 2
    assert "did you mean" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (main([]), capsys.readouterr().out) == (0, "")
