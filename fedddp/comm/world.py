"""Read rank and world size from the launcher's environment."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ..errors import UsageError

SPANS_HOSTS = (
    "the ranks of this run are on several hosts, and what they send each other is neither encrypted nor authenticated: "
    "fedddp doctor says what to do; privacy.trust_network=true if that is done"
)


LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
"""Environment variables in which mpirun gives the number of tasks and the number of this one."""


DEFAULT_IDS = ("none", "fedddp")
"""Names of a run that torchrun and launch/multi_node.sh give to every start."""
ELSEWHERE = "192.0.2.1"
"""An address set aside for documentation: the way there is the default route."""


MEMBER = "FEDDDP_MEMBER"
"""Environment variable with the name of a process that `comm.coordinator` has started."""


START = 120.0
"""Seconds after which a coordinated process that has not come to meet the others counts as lost, at least."""


def rank_path(text: str, rank: int) -> Path:
    """Return the path that a configuration key names for a rank: ``{rank}`` in it stands for the rank."""
    return Path(text.replace("{rank}", str(rank)))


@dataclass(frozen=True)
class Place:
    """Rank, world size and attempt of this process, from torchrun's environment; a single rank without one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    attempt: int = 0
    launch: str = ""
    """Identifies one start by torchrun, with its restarts, on this machine; empty without torchrun."""
    job: str = ""
    """The launcher's name of the run, the same on all machines, also of another start; empty without torchrun."""
    gathered: bool = False
    """Whether what all machines print comes together: srun does that."""
    coordinated: bool = False
    """Whether the launcher decides after a loss which ranks go on, see `comm.coordinator`."""
    started: int = 0
    """How many ranks there were at first, where the launcher decides."""
    numbers: tuple[int, ...] = ()
    """Which of these the ranks of now were, in their order."""

    @property
    def prints_for_machine(self) -> bool:
        """Whether this rank prints for its machine, one of several; where lines come together, rank 0 alone does."""
        first, several = self.local_rank == 0, self.local_world_size < self.world_size
        return first and several and (self.rank == 0 or not self.gathered)

    @property
    def may_be_a_restart(self) -> bool:
        """Whether this launch can have run before: agents of several machines count restarts independently."""
        return self.attempt > 0 or self.local_world_size < self.world_size

    def patience(self, timeout: float) -> float:
        """Seconds to wait for other ranks to start; ``timeout`` for those that have.

        Where the launcher ends a rank that does not come, that is a while: the machine may be busy.
        """
        return max(timeout, START) if self.coordinated else timeout

    def moved(self, number: int, numbers: tuple[int, ...], attempt: int) -> Self:
        """Return the place of the process that was rank ``number`` at first among those that are left."""
        rank, size = numbers.index(number), len(numbers)
        return replace(self, rank=rank, world_size=size, local_world_size=size, attempt=attempt, numbers=numbers)

    @property
    def home(self) -> tuple[int, int]:
        """The rank whose data this process has, and of how many, from the first to the last round."""
        return (self.numbers[self.rank], self.started) if self.numbers else (self.rank, self.world_size)

    @classmethod
    def from_env(cls) -> Self:
        """Read the environment. Raises UsageError for values that are no numbers."""
        env = os.environ
        rank, world_size = _number(env, "RANK", 0), _number(env, "WORLD_SIZE", 1)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=_number(env, "LOCAL_RANK", rank),
            local_world_size=_number(env, "LOCAL_WORLD_SIZE", world_size),
            attempt=_number(env, "TORCHELASTIC_RESTART_COUNT", 0),
            launch=_launch(env),
            gathered="SLURM_STEP_ID" in env,
            coordinated=MEMBER in env,
            job=env.get("TORCHELASTIC_RUN_ID", ""),
        )


def check_meeting(place: Place, env: Mapping[str, str]) -> None:
    """Raise UsageError if the environment does not define how the ranks find each other."""
    if place.world_size == 1:
        return
    started = f"WORLD_SIZE={place.world_size}"
    remedy = f"start with torchrun --nproc_per_node={place.world_size}, which sets all of it, or with launch/party.sh"
    needed = ("RANK",) * ("WORLD_SIZE" in env) + ("MASTER_ADDR", "MASTER_PORT")
    missing = [key for key in needed if not env.get(key)]
    if missing:
        raise UsageError(f"{started}: {', '.join(missing)} not set, so the ranks cannot find each other; {remedy}")
    _number(env, "MASTER_PORT", 0)
    if place.rank >= place.world_size:
        raise UsageError(f"RANK={place.rank}: {started}, so ranks are 0 to {place.world_size - 1}; {remedy}")


def alone_of_many(env: Mapping[str, str]) -> str | None:
    """A warning if a launcher started several tasks that do not know of each other."""
    for size, rank in LAUNCHERS:
        tasks = env.get(size, "")
        if tasks.isdecimal() and int(tasks) > 1 and rank in env and "WORLD_SIZE" not in env:
            return (
                f"{size}={tasks}, but WORLD_SIZE is not set: each of the {tasks} tasks trains alone, a run of its own; "
                "to train together start one task per machine, with launch/multi_node.sh (torchrun) as its program"
            )
    return None


def _number(env: Mapping[str, str], key: str, default: int) -> int:
    value = env.get(key, str(default))
    if not value.isdecimal():
        raise UsageError(f"{key}={value!r}: should be a whole number; torchrun sets it")
    return int(value)


def local_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spans_hosts(place: Place, env: Mapping[str, str]) -> bool:
    """Whether ranks of this run are on other machines, as far as one rank can know.

    They are if fewer ranks are local than there are in all. Without LOCAL_WORLD_SIZE, which a launcher sets, all ranks
    are on this machine only if MASTER_ADDR is a loopback address.
    """
    if place.world_size == 1 or place.local_world_size < place.world_size:
        return place.world_size > 1
    return "LOCAL_WORLD_SIZE" not in env and not is_loopback(env.get("MASTER_ADDR", ""))


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` is a loopback address; False if it has no address."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses)


def literal(host: str) -> str:
    """``host`` as an address, if it is one in digits or localhost; else empty."""
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]")))
    except ValueError:
        return ""


def is_own(host: str) -> bool:
    """Whether ``host`` is this machine: a program can listen at one of its addresses here."""
    try:
        found = {(info[0], info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(_can_bind(family, str(address)) for family, address in found)


def _can_bind(family: int, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def own_address(toward: str) -> str:
    """The address by which ``toward`` would reach this machine; empty if there is no way there. Nothing is sent."""
    try:
        family, _, _, _, (address, *_) = socket.getaddrinfo(toward, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def listening_address(place: Place, env: Mapping[str, str]) -> str:
    """The address of this machine on the way to MASTER_ADDR; of the default route where that is a loopback address
    and ranks are on other machines. Empty if not known."""
    address = own_address(env.get("MASTER_ADDR", ""))
    if address and spans_hosts(place, env) and is_loopback(address):
        return own_address(ELSEWHERE)
    return address


def _launch(env: Mapping[str, str]) -> str:
    """The launcher's name of the run; where nobody chose one, with the agent that started this process."""
    run_id = env.get("TORCHELASTIC_RUN_ID", "")
    if run_id not in DEFAULT_IDS:
        return run_id
    with suppress(OSError, IndexError):  # a container gives the same number to the agent of each start
        began = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        return f"{run_id}/{socket.gethostname()}/{os.getppid()}/{began}"
    return f"{run_id}/{socket.gethostname()}/{os.getppid()}"


def memory() -> int:
    """Return the bytes of memory of this machine, or those that its control group may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # another kind of machine; "max"
        return total
