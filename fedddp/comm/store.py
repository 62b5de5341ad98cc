"""The store through which ranks and machines find each other: where it listens, and a limit for every call of it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Self

import torch.distributed as dist

from . import interrupt
from .heartbeat import CommError
from .world import Place, literal

log = logging.getLogger("fedddp")
PATIENCE = 10.0  # seconds after which a wait is reported
SLACK = 2.0  # seconds beyond its own limit after which a call is ended from outside


class TimedStore:
    """A store whose calls end: torch's own timeout does not count while the other side of the connection is silent.

    A thread looks at the calls that last, and shuts the connection down when one lasts too long.

    Args:
        store: where the calls go.
        sockets: the connection to whoever holds the store.
        limit: seconds for a call.
        where: the store in words, for the message.
    """

    def __init__(self, store: dist.Store, sockets: set[tuple[int, str]], limit: float, where: str) -> None:
        self.raw = store
        self._sockets, self._limit, self._where = sockets, limit, where
        self._began: dict[int, float] = {}  # by thread
        self._lost = self._closed = False
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """End the calls of the block, of this thread, after the limit. Raises CommError instead of their error then."""
        me = threading.get_ident()
        self._began[me] = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not self._lost:
                raise
            raise CommError(
                f"{self._where} did not answer for {self._limit:g} s: the machine that holds it, or the way there, is "
                "lost (run.timeout is how long to wait)"
            ) from error
        finally:
            self._began.pop(me, None)

    def set(self, key: str, value: str) -> None:
        with self.limited():
            self.raw.set(key, value)

    def get(self, key: str) -> bytes:
        with self.limited():
            return self.raw.get(key)

    def check(self, keys: list[str]) -> bool:
        with self.limited():
            return self.raw.check(keys)

    def add(self, key: str, amount: int) -> int:
        with self.limited():
            return self.raw.add(key, amount)

    def below(self, prefix: str, timeout: float) -> Self:
        """From now on put ``prefix`` before every key, and wait ``timeout`` seconds for one that is not there."""
        self.raw = dist.PrefixStore(prefix, self.raw)
        self.raw.set_timeout(timedelta(seconds=timeout))
        return self

    def limit(self, seconds: float) -> None:
        """From now on give each call so long."""
        self._limit = seconds
        self.raw.set_timeout(timedelta(seconds=seconds))

    def close(self) -> None:
        """End the thread; the store can still be used."""
        self._closed = True

    def _watch(self) -> None:
        while not self._closed and not self._lost:
            time.sleep(0.2)
            oldest = min(list(self._began.values()), default=time.monotonic())
            if time.monotonic() - oldest > self._limit + SLACK:
                self._lost = True
                cut(self._sockets)


def launchers_store(place: Place, timeout: float) -> TimedStore:
    """The store of torchrun's agent, or one on rank 0. Does not wait for the other ranks."""
    at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    held_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    where = f"the store at {at}, which {'the launcher' if held_by_agent else 'rank 0'} holds,"
    try:
        with announced(lambda: f"start: waiting up to {timeout:g} s (run.timeout) for {where[:-1]}", place):
            return opened(at, timeout, where, holds=place.rank == 0 and not held_by_agent)
    except (RuntimeError, OSError) as error:
        raise CommError(f"start: {where} cannot be reached within {timeout:g} s") from error


def opened(at: str, timeout: float, where: str, *, holds: bool) -> TimedStore:
    """The store at ``at``, HOST:PORT; who ``holds`` it listens there.

    It listens on the address alone if HOST is one of this machine's in digits, or localhost, and not a name, which may
    mean another address elsewhere; else on every interface.

    Raises RuntimeError or OSError if it cannot be opened or reached within ``timeout`` seconds.
    """
    host, _, port = at.rpartition(":")
    host, before, listening = host.strip("[]"), open_sockets(), None
    if holds:
        listening = _listening(host, int(port))
    else:
        _await_listener(host, int(port), timeout)
    store = dist.TCPStore(
        host,
        int(port),
        is_master=holds,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listening,
    )
    return TimedStore(store, open_sockets() - before, timeout, where)


def _listening(host: str, port: int) -> int | None:
    """A descriptor that listens at ``host`` only; None if it has to be everywhere."""
    address = literal(host)
    if not address:
        return None
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=2048).detach()
    except OSError:  # not an address of this machine (behind a translated one), or taken: torch says so
        return None


def _await_listener(host: str, port: int, timeout: float) -> None:
    """Wait until somebody listens at ``host``: here, since torch would neither be quiet nor notice a signal."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        interrupt.check()
        with suppress(OSError), socket.create_connection((host, port), timeout=min(2.0, timeout)):
            return
        time.sleep(0.1)
    raise ConnectionError(f"nobody listens there within {timeout:g} s")


@contextmanager
def announced(text: Callable[[], str], place: Place | None = None) -> Iterator[None]:
    """Log ``text`` once if the block takes more than a few seconds, on the first rank of each machine."""

    def say() -> None:
        if place is None or place.local_rank == 0:
            log.info("%s", text())

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def open_sockets() -> set[tuple[int, str]]:
    """This process's open sockets: file descriptor and inode; none without /proc."""
    found = set()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):
            found.add((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
    return {(fd, link) for fd, link in found if link.startswith("socket:")}


def cut(sockets: set[tuple[int, str]]) -> None:
    """Shut down those of ``sockets`` that are still open and connected."""
    for fd, _ in sockets & open_sockets():
        with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            connection.getpeername()  # raises for the socket that listens
            connection.shutdown(socket.SHUT_RDWR)
