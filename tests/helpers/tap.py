"""A tap on loopback: what really passes between ranks, seen from outside their processes.

A raw AF_PACKET socket (root, or CAP_NET_RAW) copies every packet of the interface; the TCP payload is put together
again by sequence number, so that a retransmission counts once. Loopback shows a packet twice, as it leaves and as it
arrives: only the arrival is taken.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ALL_PROTOCOLS, ARRIVED, PACKET_STATISTICS, SO_RCVBUFFORCE = 0x0003, 0, 6, 33


class End(NamedTuple):
    """One end of a TCP connection."""

    address: str
    port: int


Stream = tuple[End, End]
"""From, to."""


@dataclass(frozen=True)
class Capture:
    """The TCP payload of each direction of each connection."""

    payload: dict[Stream, bytes]
    dropped: int = 0
    """Packets that the kernel threw away since the tap was too slow: a capture with any proves nothing."""

    def of(self, connections: Iterable[Stream]) -> Capture:
        """Both directions of these connections only: other programs use loopback too."""
        wanted = {way for a, b in connections for way in ((a, b), (b, a))}
        return Capture({stream: data for stream, data in self.payload.items() if stream in wanted}, self.dropped)

    @property
    def bytes(self) -> int:
        return sum(map(len, self.payload.values()))

    def windows(self, content: bytes, size: int = 64, step: int = 8, every: int = 64) -> list[int]:
        """Offsets of windows of ``content`` that occur somewhere in the payload, in whatever order they were sent.

        Looks at each window that begins at a multiple of ``every``; windows that are one repeated ``step`` bytes tell
        nothing and are left out.
        """
        offsets = range(0, len(content) - size + 1, every)
        telling = [o for o in offsets if len({content[o + i : o + i + step] for i in range(0, size, step)}) > 1]
        by_start: dict[int, list[int]] = defaultdict(list)
        for offset in telling:
            by_start[int.from_bytes(content[offset : offset + 8], "little")].append(offset)
        return sorted({o for data in self.payload.values() for o in _found(content, by_start, data, size)})

    def written(self, port: int) -> list[tuple[str, bytes]]:
        """The keys and values that clients set in the TCPStore that listens on ``port``."""
        return [pair for (_, end), data in self.payload.items() if end.port == port for pair in _settings(data)]


def _found(content: bytes, by_start: dict[int, list[int]], data: bytes, size: int) -> Iterator[int]:
    """Offsets of the windows in ``data``, at whatever byte: their first eight bytes by value, then all of them."""
    known = np.zeros(1 << 24, dtype=bool)  # by the lower three bytes, which leaves few to look up
    known[np.array(list(by_start), dtype=np.uint64) & 0xFFFFFF] = True
    for shift in range(8 if len(data) >= size else 0):
        words = np.frombuffer(data, dtype="<u8", count=(len(data) - shift) // 8, offset=shift)
        likely = np.flatnonzero(known[words & 0xFFFFFF]).tolist()
        for at in (at for at in likely if int(words[at]) in by_start):
            window = data[8 * at + shift : 8 * at + shift + size]
            yield from (o for o in by_start[int(words[at])] if content[o : o + size] == window)


class _Requests:
    """A client's requests to a TCPStore: numbers of 8 bytes, and texts behind their length."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, size: int = 8) -> int:
        return int.from_bytes(self.text(size), "little")

    def text(self, size: int | None = None) -> bytes:
        length = self.number() if size is None else size
        self.at += length
        return self.data[self.at - length : self.at]


VALIDATE, SET, GET, CHECK, WAIT, PING = 0, 1, 3, 5, 6, 13  # of torch/csrc/distributed/c10d/TCPStoreBackend.hpp


def _settings(data: bytes) -> Iterator[tuple[str, bytes]]:
    requests = _Requests(data)
    while requests.at < len(data):
        kind = requests.number(1)
        if kind in (VALIDATE, PING):
            requests.number(4)
        elif kind == SET:
            key = requests.text().decode()
            yield key, requests.text()
        elif kind in (CHECK, WAIT):
            for _ in range(requests.number()):
                requests.text()
        else:
            assert kind == GET, f"request {kind} at byte {requests.at} is new to the reader of store traffic"
            requests.text()


def captured(body: Callable[[], Any], interface: str = "lo") -> tuple[Any, Capture]:
    """What ``body`` returns, and all TCP payload that passed the interface meanwhile. Skips the test where not allowed.

    Narrow it down with `Capture.of` and what the ranks report by `connections`.
    """
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no raw socket here, which the tap needs (Linux, CAP_NET_RAW and CAP_NET_ADMIN): {error}")
    with tap:
        tap.bind((interface, ALL_PROTOCOLS))
        tap.settimeout(0.2)
        packets: list[bytes] = []
        done = threading.Event()
        reader = threading.Thread(target=_read, args=(tap, packets, done))
        reader.start()
        try:
            result = body()
        finally:
            done.set()
            reader.join()
        _, dropped = struct.unpack("II", tap.getsockopt(263, PACKET_STATISTICS, 8))  # 263: SOL_PACKET
    return result, Capture(_streams(packets), dropped)


def connections() -> list[Stream]:
    """The TCP connections that this process holds now: (its end, the other end)."""
    links = (_link(fd) for fd in Path("/proc/self/fd").iterdir())
    own = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    held = []
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in own and words[3] != "0A":  # not those that listen
                held.append((_end(words[1], family), _end(words[2], family)))
    return held


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _end(text: str, family: int) -> End:
    """``0100007F:1F90``: words of the address in the machine's byte order, the port in hexadecimal."""
    address, port = text.split(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    return End(_plain(b"".join(words)), int(port, 16))


def _plain(address: bytes) -> str:
    """IPv4 addresses also where they are written as IPv6."""
    ip = ipaddress.ip_address(address)
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def _read(tap: socket.socket, packets: list[bytes], done: threading.Event) -> None:
    while True:
        try:
            packet, (_, _, kind, *_) = tap.recvfrom(1 << 18)
        except TimeoutError:
            if done.is_set():
                return
            continue
        if kind == ARRIVED:
            packets.append(packet)


def _streams(packets: list[bytes]) -> dict[Stream, bytes]:
    """Payload by direction, put together by sequence number; a new connection on old ports is appended."""
    segments: dict[Stream, list[dict[int, bytes]]] = defaultdict(lambda: [{}])
    for packet in packets:
        parsed = _tcp(packet)
        if parsed is None:
            continue
        stream, sequence, starts, data = parsed
        if starts and segments[stream][-1]:
            segments[stream].append({})
        if data and len(data) > len(segments[stream][-1].get(sequence, b"")):
            segments[stream][-1][sequence] = data
    return {stream: b"".join(map(_joined, parts)) for stream, parts in segments.items()}


def _joined(segments: dict[int, bytes]) -> bytes:
    """Segments in the order of their numbers (modulo 2^32), each byte once."""
    if not segments:
        return b""
    first = next(iter(segments))
    ordered = sorted(((number - first + 2**31) % 2**32, data) for number, data in segments.items())
    joined, end = [], ordered[0][0]
    for begin, data in ordered:
        joined.append(data[max(0, end - begin) :])
        end = max(end, begin + len(data))
    return b"".join(joined)


def _tcp(packet: bytes) -> tuple[Stream, int, bool, bytes] | None:
    """(stream, sequence number, whether it opens a connection, payload) of an Ethernet frame with TCP in it."""
    kind = packet[12:14]
    if kind == b"\x08\x00" and packet[23] == socket.IPPROTO_TCP:
        begin, end = 14 + 4 * (packet[14] & 15), 14 + int.from_bytes(packet[16:18], "big")
        source, target = packet[26:30], packet[30:34]
    elif kind == b"\x86\xdd" and packet[20] == socket.IPPROTO_TCP:
        begin, end = 54, 54 + int.from_bytes(packet[18:20], "big")
        source, target = packet[22:38], packet[38:54]
    else:
        return None
    if end in (14, 54):  # a segment longer than the length field can say
        end = len(packet)
    ports = struct.unpack_from(">HHI", packet, begin)
    data = packet[begin + 4 * (packet[begin + 12] >> 4) : end]
    stream = End(_plain(source), ports[0]), End(_plain(target), ports[1])
    return stream, ports[2], bool(packet[begin + 13] & 2), data
