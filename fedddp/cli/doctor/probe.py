"""Measure the network side of a run (its store and its connections) on this machine, with two ranks of its own.

A process forks two ranks that meet as the ranks of a run do; then it reads from /proc which addresses they listen on,
and speaks to their store as a stranger would: without a name, a password or a certificate. Two more ranks try gloo's
encrypted transport. Linux only. `measure` starts that process; ``python -m fedddp.cli.doctor.probe`` is it.
"""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from ...comm import Comm, CommError, Place
from ...comm.world import ELSEWHERE, own_address
from ...errors import first_line

PATIENCE = 20.0  # seconds for two ranks to meet
LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp
VALIDATE, NUM_KEYS, MAGIC = (
    0,
    7,
    0x3C85F7CE,
)  # of the store's protocol (torch/csrc/distributed/c10d/TCPStoreBackend.hpp)
LAUNCHER = ("MASTER_", "TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_")


@dataclass(frozen=True)
class Measured:
    """Addresses that rank 0's store and the ranks' gloo listen on; whether the store answered a stranger at
    ``asked`` (None: not understood); why two ranks could not meet by gloo's TLS (empty: they met), and why by gloo."""

    store: tuple[str, ...] = ()
    gloo: tuple[str, ...] = ()
    answered: bool | None = None
    asked: str = ""
    no_tls: str = ""
    error: str = ""


def measure(env: Mapping[str, str]) -> Measured:
    """Start two ranks and look at them, in an environment ``env`` but for what a launcher put there. Takes seconds."""
    clean = {k: v for k, v in env.items() if not k.startswith(LAUNCHER) and k not in ("RANK", "WORLD_SIZE")}
    at = own_address(env.get("MASTER_ADDR", "")) or "127.0.0.1"
    command = [sys.executable, "-m", "fedddp.cli.doctor.probe", at]
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command, env={**clean, "PYTHONPATH": path}, capture_output=True, text=True, timeout=5 * PATIENCE
        )
    except subprocess.TimeoutExpired:
        return Measured(error=f"two ranks did not meet within {5 * PATIENCE:g} s")
    try:
        table: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        return Measured(error=(done.stderr.splitlines() or ["the probe said nothing"])[-1])
    table |= {k: tuple(v) for k, v in table.items() if isinstance(v, list)}
    return Measured(**table)


def listening(port: int | None = None, pids: Sequence[int] = ()) -> list[tuple[str, int]]:
    """(address, port) of listening TCP sockets: of ``pids``, or of whoever holds ``port``."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            local, state, inode = (line.split()[i] for i in (1, 3, 9))
            address, own_port = _address(local)
            if state == LISTEN and (inode in inodes if pids else own_port == port):
                found.append((address, own_port))
    return found


def answers(address: str, port: int) -> bool | None:
    """Whether a store tells a stranger how many keys it holds; None if its reply is not understood."""
    try:
        with socket.create_connection((address, port), timeout=2) as store:
            store.sendall(struct.pack("<BI", VALIDATE, MAGIC) + struct.pack("<B", NUM_KEYS))
            reply = store.recv(8)
    except TimeoutError:
        return None
    except OSError:
        return False
    return True if len(reply) == 8 and 0 < struct.unpack("<q", reply)[0] < 1 << 20 else None


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(fd)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes


def _address(text: str) -> tuple[str, int]:
    """``0100007F:1F90`` is ("127.0.0.1", 8080): words in the machine's order, of network order inside."""
    digits, _, port = text.partition(":")
    words = struct.pack(f"={len(digits) // 8}I", *(int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)))
    address = ipaddress.ip_address(words)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)


def _pair(host: str, transport: str) -> tuple[list[int], list[str], int]:
    """Fork two ranks that meet by gloo: their process ids, what went wrong on each (empty: they met), the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), GLOO_DEVICE_TRANSPORT=transport)
    if not transport:
        del os.environ["GLOO_DEVICE_TRANSPORT"]
    pids, ends = [], []
    for rank in range(2):
        mine, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            _rank(rank, theirs)
        os.close(theirs)
        pids.append(pid)
        ends.append(mine)
    deadline, reports = time.monotonic() + 2 * PATIENCE, []
    for end in ends:
        ready = wait([end], max(0.0, deadline - time.monotonic()))
        reports.append(os.read(end, 4096).decode() if ready else "did not answer")
        os.close(end)
    return pids, ["" if text == "met" else text or "died" for text in reports], port


def _rank(rank: int, report: int) -> None:
    """The life of a forked rank: meet the other, say so, wait to be ended."""
    try:
        comm = Comm.connect(Place(rank, 2, rank, 2), torch.device("cpu"), backend="gloo", timeout=PATIENCE)
        os.write(report, b"met")
        time.sleep(3 * PATIENCE)
        del comm
    except CommError as error:
        cause = error.__cause__ or error
        os.write(report, first_line(cause).encode()[:4000])
    finally:
        os._exit(0)


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def _main(host: str) -> Measured:
    pids, wrong, port = _pair(host, "")
    try:
        if any(wrong):
            return Measured(error=next(filter(None, wrong)))
        sockets = listening(pids=pids)
        store, gloo = (sorted({a for a, p in sockets if (p == port) == is_store}) for is_store in (True, False))
        asked = own_address(ELSEWHERE) or host
        answered = answers(asked, port)
    finally:
        _end(pids)
    pids, wrong, _ = _pair(host, "TCP_TLS")
    _end(pids)
    return Measured(tuple(store), tuple(gloo), answered, asked, no_tls=next(filter(None, wrong), ""))


if __name__ == "__main__":
    print(json.dumps(asdict(_main(sys.argv[1]))))
