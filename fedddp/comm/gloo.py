"""This process's sockets: which are open, and how to end a connection that a library offers no way to end."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def open_sockets() -> set[tuple[int, str]]:
    """This process's open sockets: file descriptor and inode; none where there is no /proc."""
    found = set()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):
            found.add((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
    return {(fd, link) for fd, link in found if link.startswith("socket:")}


def cut(connections: set[tuple[int, str]]) -> None:
    """Shut down those that are still what they were and have a peer: gloo offers no way to end its own."""
    for fd, _ in connections & open_sockets():
        with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            connection.getpeername()  # not the socket that listens
            connection.shutdown(socket.SHUT_RDWR)
