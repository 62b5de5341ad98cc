"""What several machines need of each other, and of this one: names, ports, clocks, a common folder, GPUs."""

import ctypes
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ...comm import Comm, CommError, Place, Purpose
from ...comm.world import DEFAULT_IDS, ELSEWHERE, is_loopback, own_address, spans_hosts
from ...config import Config
from ...errors import UsageError
from .finding import Finding
from .probe import listening

PATIENCE = 60.0  # seconds that machines wait for each other here
APART = 2.0  # seconds between clocks that make the times in logs and files hard to compare
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
UNSYNCHRONISED = 0x0040  # STA_UNSYNC of sys/timex.h


def findings(config: Config, place: Place, env: Mapping[str, str]) -> Iterator[Finding]:
    """All of them; where the launcher's variables name other machines, these are met."""
    yield _name(place, env)
    yield from _job(place, env)
    yield _ports(place, env)
    yield from _gpus()
    if place.local_world_size < place.world_size or ("LOCAL_WORLD_SIZE" not in env and spans_hosts(place, env)):
        yield from _others(config, place)
    else:
        yield _clock()


def _name(place: Place, env: Mapping[str, str]) -> Finding:
    """What this machine's own name means here."""
    name, outside = socket.gethostname(), own_address(ELSEWHERE)
    remedy = f"name machines by address{f' ({outside})' if outside else ''} in MASTER_ADDR, RDZV_ENDPOINT and --master"
    try:
        found = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        return Finding("host name", "warn", f"{name} has no address here", remedy)
    said = f"{name} is {', '.join(found)} here"
    if not is_loopback(name):
        return Finding("host name", "ok", said)
    level = "warn" if spans_hosts(place, env) else "ok"
    return Finding("host name", level, f"{said}: a loopback address, which no other machine reaches", remedy)


def _job(place: Place, env: Mapping[str, str]) -> Iterator[Finding]:
    if place.job in DEFAULT_IDS and spans_hosts(place, env):
        found = f"{place.job}, the default: another job that meets at the same endpoint would mix with this one"
        yield Finding(
            "name of the job", "warn", found, "RDZV_ID (--rdzv_id), the same on all machines, new for each start"
        )


def _ports(place: Place, env: Mapping[str, str]) -> Finding:
    """The ports that a firewall has to let through, and whether the first is free."""
    port, agent = env.get("MASTER_PORT", ""), env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    low, high = EPHEMERAL.read_text(encoding="utf-8").split() if EPHEMERAL.exists() else ("1024", "65535")
    needed = (
        f"others must reach MASTER_PORT{f'={port}' if port else ''} on rank 0's machine, and {low}-{high} on all (gloo)"
    )
    if port.isdecimal() and place.rank == 0 and place.world_size > 1 and not agent and listening(int(port)):
        return Finding(
            "ports", "fail", f"something listens on MASTER_PORT={port} already", "end it, or another MASTER_PORT"
        )
    return Finding("ports", "ok", needed)


def _gpus() -> Iterator[Finding]:
    """The GPUs of this machine, and between which of them memory is copied directly."""
    count = torch.cuda.device_count()
    if not count:
        return
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    apart = [f"{j}-{i}" for i, j in pairs if not torch.cuda.can_device_access_peer(i, j)]
    said = f"{count} x {names}" + (f"; no direct access between {', '.join(apart)}" if apart else "")
    yield Finding("GPUs", "ok", said + ("; direct access between all" if pairs and not apart else ""))


def _clock() -> Finding:
    """Whether the kernel takes this machine's clock for synchronised."""
    state = ctypes.create_string_buffer(512)  # struct timex, of 208 bytes
    try:
        known = ctypes.CDLL(None).adjtimex(state) >= 0
    except (OSError, AttributeError):  # not Linux
        known = False
    if not known:
        return Finding("clock", "ok", "the kernel does not say whether it is synchronised")
    if int.from_bytes(state.raw[40:44], sys.byteorder) & UNSYNCHRONISED:
        remedy = "chrony, systemd-timesyncd or another NTP client, before a run on several machines"
        return Finding("clock", "ok", "the kernel takes it for not synchronised", remedy)
    return Finding("clock", "ok", "synchronised, by the kernel")


def _others(config: Config, place: Place) -> Iterator[Finding]:
    """Meet the other machines, one rank of each, as a run does; the first rank of every machine must come here."""
    count, number = place.world_size // place.local_world_size, place.rank // place.local_world_size
    first = replace(place, rank=number, world_size=count, local_rank=0, local_world_size=1, job=f"doctor/{place.job}")
    try:
        comm = Comm.connect(first, torch.device("cpu"), backend="gloo", timeout=min(PATIENCE, config.run.timeout))
        found = list(compared(comm, Path(config.run.dir)))
        comm.close()
    except (CommError, UsageError) as error:
        yield Finding(
            "machines", "fail", str(error), "start fedddp doctor on all machines at once; look at ports and addresses"
        )
        return
    yield from found


def compared(comm: Comm, folder: Path) -> Iterator[Finding]:
    """Compare the machines that have met: how far apart they are, their clocks, and the ``folder`` of runs."""
    comm.barrier(Purpose.DONE)
    began = time.monotonic()
    comm.barrier(Purpose.DONE)
    trip = time.monotonic() - began
    clocks = comm.all_gather(torch.tensor([time.time()], dtype=torch.float64), Purpose.DONE)
    apart = float(clocks.max() - clocks.min())
    yield Finding("machines", "ok", f"{comm.world_size} have met; a small sum takes {1000 * trip:.1f} ms")
    yield Finding(
        "clocks", "warn" if apart > APART + trip else "ok", f"at most {apart:.2f} s between the machines",
        "an NTP client on each" if apart > APART + trip else "",
    )  # fmt: skip
    yield _shared(comm, folder)


def _shared(comm: Comm, folder: Path) -> Finding:
    """Whether all machines see the same folder of runs: rank 0 makes a file, and the others look for it."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    with tempfile.TemporaryDirectory(prefix=".fedddp-doctor-", dir=existing if comm.rank == 0 else None) as made:
        name = comm.broadcast_text(Path(made).name, Purpose.RUN_FOLDER)
        apart = comm.any(not (existing / name).is_dir(), Purpose.DONE)
    if apart:
        found = f"{folder} is a folder of each machine: rank 0's has the run"
        remedy = "a common folder where clients remember something between rounds (SCAFFOLD, Ditto ...) and runs resume"
        return Finding("run.dir", "ok", found, remedy)
    return Finding("run.dir", "ok", f"{folder} is one folder for all machines")
