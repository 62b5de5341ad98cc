"""The store where ranks meet: calls end, it listens where it is told, and waits say what they wait for."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from fedddp.comm import Place, store
from fedddp.comm.heartbeat import CommError, Heartbeat
from fedddp.comm.world import is_own, listening_address, own_address
from tests.comm.test_heartbeat import Held

HOLDER = """
import sys, time
from fedddp.comm.store import opened
held = opened(f"127.0.0.1:{sys.argv[1]}", 20.0, "", holds=True)
held.set("key", "value")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_call_ends_when_the_holder_is_silent(free_port):
    """A stopped process, or a link that was cut: the kernel keeps the connection, and torch would wait for ever."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(free_port)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        reached = store.opened(f"127.0.0.1:{free_port}", 1.0, "the store at HOST:1, which rank 0 holds,", holds=False)
        assert reached.get("key") == b"value"
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)  # it answers until it has stopped
        began = time.monotonic()
        with pytest.raises(CommError, match="the store at HOST:1, which rank 0 holds, did not answer for 1 s"):
            reached.check(["key"])
        assert time.monotonic() - began < 1.0 + store.SLACK + 2.0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_an_address_in_digits_is_the_only_one_that_is_listened_at(free_port):
    from fedddp.cli.doctor.probe import listening

    for host, expected in (("127.0.0.1", {"127.0.0.1"}), ("localhost", {"127.0.0.1"})):
        held = store.opened(f"{host}:{free_port}", 5.0, "", holds=True)
        assert {address for address, _ in listening(free_port)} == expected
        del held
        free_port += 1
    held = store.opened(f"{socket.gethostname()}:{free_port}", 5.0, "", holds=True)
    assert {address for address, _ in listening(free_port)} & {"::", "0.0.0.0"}
    del held


def test_a_port_that_is_taken_is_an_error(free_port):
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(RuntimeError):
        store.opened(f"127.0.0.1:{free_port}", 2.0, "", holds=True)


def test_a_wait_is_announced_once_on_the_first_rank_of_a_machine(monkeypatch):
    said = []
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    monkeypatch.setattr(store.log, "info", lambda form, text: said.append(text))
    for place in (Place(0, 2, 0, 1), Place(3, 4, 1, 2)):
        with store.announced(lambda rank=place.rank: f"rank {rank} waits", place):
            time.sleep(0.3)
    with store.announced(lambda: "not long"):
        pass
    assert said == ["rank 0 waits"]


def test_nobody_listening_ends_in_a_line(monkeypatch, free_port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(CommError, match=r"which rank 0 holds, cannot be reached within 0\.3 s"):
        store.launchers_store(Place(1, 2, 0, 1), 0.3)


def test_this_machine_is_found_by_its_addresses():
    assert is_own("127.0.0.1")
    assert is_own(socket.gethostname())
    assert not is_own("192.0.2.1")
    assert not is_own("no-such-host.invalid")


def test_ranks_listen_where_the_master_reaches_them():
    assert listening_address(Place(0, 2, 0, 2), {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "2"}) == "127.0.0.1"
    spanning = listening_address(Place(0, 2, 0, 1), {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "1"})
    assert spanning == own_address("192.0.2.1")
    assert listening_address(Place(), {}) == ""


def left(rank, others=()):
    held = Held({f"left/{other}": b"" for other in others})
    beat = Heartbeat(held, rank, 3, 0.3, lambda *_: None)
    began = time.monotonic()
    beat.leave()
    return f"left/{rank}" in held, time.monotonic() - began > 0.25


def test_rank_0_stays_until_the_others_have_left():
    """It may hold the store, and a rank on a slow link asks the store before it sees that the end is reached."""
    assert left(1) == (True, False)
    assert left(0) == (True, True)
    assert left(0, others=(1,)) == (True, True)
    assert left(0, others=(1, 2)) == (True, False)


def test_a_store_that_is_gone_does_not_spoil_the_end():
    class Gone(Held):
        def set(self, key, value):
            raise RuntimeError("connection reset")

    Heartbeat(Gone(), 1, 2, 5.0, lambda *_: None).leave()
