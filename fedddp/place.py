"""Where a process stands among the ranks, as its launcher says."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SPANS_HOSTS", "Place", "is_loopback", "spans_hosts"]

SPANS_HOSTS = (
    "the ranks of this run are on several hosts, and what they send each other is neither encrypted nor authenticated: "
    "python -m fedddp.doctor says what to do; privacy.trust_network=true if that is done"
)


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks, as torchrun's environment says; alone without one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    attempt: int = 0
    launch: str = ""
    """What one start by torchrun has in common with its restarts and with no other start; empty without torchrun."""

    @property
    def may_be_a_restart(self) -> bool:
        """Whether a launch can have run before this process: agents of several machines count restarts apart."""
        return self.attempt > 0 or self.local_world_size < self.world_size

    @classmethod
    def from_env(cls) -> Place:
        env = os.environ
        rank, world_size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=int(env.get("LOCAL_RANK", rank)),
            local_world_size=int(env.get("LOCAL_WORLD_SIZE", world_size)),
            attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
            launch=_launch(env),
        )


def spans_hosts(place: Place, env: Mapping[str, str]) -> bool:
    """Whether ranks of this run are on other machines, as far as one rank can tell.

    They are where fewer ranks are local than there are. A launcher that says all are local is believed; without its
    word (no LOCAL_WORLD_SIZE) the ranks meet on this machine only if MASTER_ADDR is a loopback address.
    """
    if place.world_size == 1 or place.local_world_size < place.world_size:
        return place.world_size > 1
    return "LOCAL_WORLD_SIZE" not in env and not is_loopback(env.get("MASTER_ADDR", ""))


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` is one that only this machine can reach; one without an address is not."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses)


def _launch(env: Mapping[str, str]) -> str:
    run_id = env.get("TORCHELASTIC_RUN_ID", "")
    return f"{run_id}/{socket.gethostname()}/{os.getppid()}" if run_id == "none" else run_id
