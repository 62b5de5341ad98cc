"""Two network namespaces, joined by a cable whose delay, loss and rate change while it is used. Linux, as root.

Each end of the cable is a TUN interface; a thread carries the packets from one to the other. (The kernel's own
emulator, tc netem, is a module that many machines lack.)
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TUNSETIFF, TUN, RAW = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h; RAW: packets without a header of their own
MTU, QUEUE = 1500, 0.2  # bytes; seconds that a packet waits at most for those before it
HOSTS = Path("/etc/netns")


@dataclass
class Cable:
    """What happens to a packet: the same in both directions.

    Attributes:
        delay: seconds on the way.
        loss: the fraction of packets that is lost; 1 is a cut cable.
        rate: Mbit/s; 0 for no limit.
    """

    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def carry(self, ends: tuple[int, int], stop: threading.Event) -> None:
        """Carry packets between two TUN interfaces until ``stop``."""
        under_way: list[tuple[float, int, int, bytes]] = []
        free, number = dict.fromkeys(ends, 0.0), 0  # when an end has sent what it was given so far
        while not stop.is_set():
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.1
            for end in select.select(ends, (), (), min(wait, 0.1))[0]:
                packet, now = os.read(end, 2 * MTU), time.monotonic()
                begin = max(now, free[end])
                if self._random.random() < self.loss or begin - now > QUEUE:
                    continue
                free[end] = begin + (8e-6 * len(packet) / self.rate if self.rate else 0.0)
                number += 1
                other = ends[1] if end == ends[0] else ends[0]
                heapq.heappush(under_way, (free[end] + self.delay, number, other, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                os.write(under_way[0][2], under_way[0][3])
                heapq.heappop(under_way)


def missing() -> str:
    """Why this machine permits no namespaces; empty if it does."""
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("ip") or not os.path.exists("/dev/net/tun"):
        return "needs root, iproute2 and /dev/net/tun"
    name = f"fedddp-{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return tried.stderr.strip()


def namespace(number: int) -> str:
    """The name of a machine's network namespace."""
    return f"fedddp-{os.getpid()}-{number}"


def address(number: int) -> str:
    return f"10.213.9.{number + 1}"


@contextmanager
def joined() -> Iterator[Cable]:
    """Make two namespaces and the cable between them; remove them afterwards.

    Each is a machine of its own name, ``machine-0`` and ``machine-1``, which resolves to a loopback address there, as
    on Debian, and to the true one on the other.
    """
    cable, stop, ends = Cable(), threading.Event(), []
    try:
        for number in (0, 1):
            ends.append(_interface(number))
        carrier = threading.Thread(target=cable.carry, args=((ends[0], ends[1]), stop), daemon=True)
        carrier.start()
        yield cable
        stop.set()
        carrier.join()
    finally:
        stop.set()
        for number in (0, 1):
            remove(number)
            shutil.rmtree(HOSTS / namespace(number), ignore_errors=True)
        for end in ends:
            os.close(end)


def _interface(number: int) -> int:
    """Make a namespace and the TUN interface in it; the descriptor that reads what is sent there."""
    name, link = namespace(number), f"fd{os.getpid()}-{number}"[-15:]
    ip("netns", "add", name)
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", link.encode(), TUN | RAW))
    ip("link", "set", link, "netns", name)
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "address", "add", f"{address(number)}/24", "dev", link)
    ip("-n", name, "link", "set", link, "mtu", str(MTU), "up")
    folder, other = HOSTS / name, 1 - number
    folder.mkdir(parents=True)
    names = f"127.0.0.1 localhost\n127.0.1.1 machine-{number}\n{address(other)} machine-{other}\n"
    (folder / "hosts").write_text(names)
    return end


def ip(*words: str) -> None:
    """Run ip of iproute2."""
    subprocess.run(["ip", *words], check=True)


def remove(number: int) -> None:
    """Remove a namespace, if it is there."""
    subprocess.run(["ip", "netns", "delete", namespace(number)], check=False, capture_output=True)


def within(number: int, command: list[str]) -> list[str]:
    """The command line that runs ``command`` on machine ``number``."""
    named = f'hostname machine-{number}; exec "$@"'
    return ["ip", "netns", "exec", namespace(number), "unshare", "--uts", "sh", "-c", named, "sh", *command]


def kill(number: int) -> None:
    """End all processes of machine ``number`` at once, as a crash does."""
    pids = subprocess.run(["ip", "netns", "pids", namespace(number)], capture_output=True, text=True).stdout.split()
    if pids:
        subprocess.run(["kill", "-9", *pids], check=False, capture_output=True)
