"""Take part in a run whose launcher says who goes on after a loss: a rank's side of `coordinator`."""

import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist

from . import interrupt
from .collectives import Comm
from .heartbeat import Heartbeat
from .membership import LAUNCHER, Membership
from .world import MEMBER, Place

LOOK = 0.02  # seconds between two looks at what others have written, or at the processes


def epoch_store(launch: str, epoch: int, store: dist.Store) -> dist.Store:
    """Return the part of the store in which the members of an epoch meet, see `Comm.connect`."""
    return dist.PrefixStore(f"fedddp/{launch}/{epoch}", store)


class Member:
    """This process's part in a run whose launcher says who goes on.

    Args:
        place: as the launcher started it.
        name: of this process, from the launcher.
        timeout: seconds without progress after which a rank counts as lost.

    Attributes:
        place: of this process in the current epoch.
    """

    def __init__(self, place: Place, name: str, timeout: float) -> None:
        numbers = tuple(range(place.world_size))
        self.place, self._timeout = replace(place, started=place.world_size, numbers=numbers), timeout
        self._number = place.rank
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))
        if not name.endswith(".0"):
            self._join(name)

    @classmethod
    def of(cls, place: Place, timeout: float) -> Self | None:
        """This process's part; None where the launcher decides nothing."""
        return cls(place, os.environ[MEMBER], timeout) if place.coordinated else None

    def _join(self, name: str) -> None:
        """Wait for a place among those that train."""
        key = f"joined/{name}"
        self._store.set(f"joining/{name}", "")
        while not self._store.check([key]):
            interrupt.check()
            time.sleep(LOOK)
        self._enter(int(self._store.get(key)))

    def _enter(self, epoch: int) -> None:
        """Take this process's place in an epoch."""
        numbers = tuple(map(int, self._store.get(f"numbers/{epoch}").split()))
        self.place = self.place.moved(self._number, numbers, epoch)

    def connect(self, device: torch.device) -> Comm:
        """Join the other members of the epoch. Raises LostRank."""
        return Comm.connect(self.place, device, backend="gloo", timeout=self._timeout)

    def regroup(self) -> None:
        """After `LostRank`, ask to go on, and take the place in the next epoch. Raises CommError if there is none."""
        place = self.place
        prefix = epoch_store(place.launch, place.attempt, self._store)
        beat = Heartbeat(prefix, place.rank, place.world_size, self._timeout, lambda *_: None)
        Membership(beat, LAUNCHER).agree(self._timeout)
        self._enter(place.attempt + 1)
