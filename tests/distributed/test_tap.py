"""What a tap on the wire sees of three ranks, against the ledger and against what they meant to hide."""

import os
import socket

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from examples.privacy.attacks.wire import neighbour, received_by_neighbour
from fedddp.comm import Comm, Place
from fedddp.rng import generator
from fedddp.secure import SecureExchange
from tests.helpers import tap
from tests.helpers.distributed import configured, train

RANKS = 3
HANDSHAKE = 8  # gloo: a number that says which pair a connection is for, once for each
MESSAGE = 3 * 48  # gloo: the header of a message, and a note that each side is ready for it
SIZES = [1, 100, 40_000, 300_000]


@pytest.fixture
def tapped(run_ranks):
    """``tapped(body, *args)``: results of ``body(comm, *args)`` on three ranks over a TCP store, the tap, its port."""

    def run(body, *args):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        told, capture = tap.captured(lambda: run_ranks(over_tcp, RANKS, port, body, args))
        assert capture.dropped == 0
        own = {connection for _, connections in told for connection in connections}
        return [result for result, _ in told], capture.of(own), port

    return run


def over_tcp(comm, port, body, args):
    """The ranks of ``comm``, whose own store is a file, met again over a TCP store, as under torchrun."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    again = Comm.connect(Place(comm.rank, RANKS, comm.rank, RANKS), torch.device("cpu"), timeout=60.0)
    result = body(again, *args)
    connections = tap.connections()
    comm.gather_bytes(b"", 1, "nobody leaves before all have counted")  # over connections that were listed
    return result, connections


def update(rank, size=300_000):
    return torch.randn(size, generator=generator(rank, "update"))


def several_sums(comm):
    comm.broadcast(update(0), "distribute the model")
    for t, size in enumerate(SIZES):
        comm.enter(f"train in round {t + 1}")
        comm.all_reduce(update(comm.rank, size), "aggregate")
    return comm.ledger.take()


def messages_of_a_ring(size, itemsize=4):
    """Messages of one all_reduce over all ranks: each segment that is not empty goes 2 (R-1) hops."""
    segments = 2 * RANKS  # small enough for one MiB each
    length = -(-size * itemsize // segments)
    length = -(-length // itemsize) * itemsize
    return 2 * (RANKS - 1) * min(segments, -(-size * itemsize // length))


def test_the_ledger_and_the_protocols_account_for_every_byte(tapped):
    """Overhead is gloo's headers, the store's own framing, its answers, and gloo's addresses published there."""
    ledgers, capture, port = tapped(several_sums)
    entries = [entry for ledger in ledgers for entry in ledger]
    sent = {op: sum(e.bytes for e in entries if e.op == op) for op in ("all_reduce", "broadcast", "store")}

    over_store = sum(len(data) for ends, data in capture.payload.items() if port in (ends[0].port, ends[1].port))
    pairs = 2 * 3  # of both groups
    farewell = 2 * (RANKS - 1) * (RANKS * 5) + MESSAGE * messages_of_a_ring(RANKS * 5, itemsize=1)  # of `over_tcp`
    messages = sum(map(messages_of_a_ring, SIZES)) + (RANKS - 1)  # and the broadcast's, to each rank but the first
    headers = pairs * HANDSHAKE + messages * MESSAGE
    rounding = 3 * len(SIZES)  # the ledger counts a third of the ring's bytes a rank, rounded up
    assert 0 <= sent["all_reduce"] + sent["broadcast"] + headers + farewell - (capture.bytes - over_store) <= rounding

    written = [(key.removeprefix("/fedddp//0/"), value) for key, value in capture.written(port)]
    notes = sum(len(key) + len(value) for key, value in written if key.startswith("at/"))
    assert notes == pytest.approx(sent["store"], abs=100)  # a note may have been on its way when the ledger was taken
    assert {key.split("/")[0] for key, _ in written} == {"at", "formed", "group"}

    overhead = headers + farewell + over_store - notes
    assert capture.bytes == pytest.approx(sum(sent.values()) + overhead, rel=0.01, abs=4096)
    assert sent["all_reduce"] == pytest.approx(4 * 4 * sum(SIZES), rel=0.01)  # 2 times the vectors: not 0


def plain_sum(comm, size):
    comm.all_reduce(update(comm.rank, size), "aggregate")


@pytest.mark.parametrize(("size", "every"), [(100_000, 64), (2_500_001, 1024)])  # segments of a sixth, and of a MiB
def test_without_masks_the_tap_sees_windows_of_each_raw_update(tapped, size, every):
    """The slice that `received_by_neighbour` names, on one connection, and nothing else of the raw vector."""
    _, capture, _ = tapped(plain_sum, size)
    for rank in range(RANKS):
        raw = update(rank, size)
        piece, received = received_by_neighbour(raw, rank, RANKS)
        assert torch.equal(received, raw[piece])
        assert len(received) == pytest.approx(size / RANKS, rel=0.01)
        windows = set(range(-(-piece.start * 4 // every) * every, piece.stop * 4 - 63, every))
        found = set(capture.windows(raw.numpy().tobytes(), every=every))
        assert found <= windows
        assert len(windows - found) <= 3  # those on a border of two segments, where a header is in between
        assert len(found) > 1000
        ways = [ends for ends, data in capture.payload.items() if received[:16].numpy().tobytes() in data]
        assert len(ways) == 1


def who_receives(comm):
    comm.all_reduce(update(comm.rank), "aggregate")
    return tap.connections()


def test_the_raw_slice_goes_to_the_rank_before(tapped):
    held, capture, _ = tapped(who_receives)
    for rank in range(RANKS):
        _, received = received_by_neighbour(update(rank), rank, RANKS)
        (way,) = [ends for ends, data in capture.payload.items() if received[:16].numpy().tobytes() in data]
        assert way in held[rank]
        assert way[::-1] in held[neighbour(rank, RANKS)]


def stream(pair, size):
    """An AES-256-CTR key stream as int64, the same for both of a pair."""
    cipher = Cipher(algorithms.AES(bytes([pair]) * 32), modes.CTR(bytes(16))).encryptor()
    return torch.frombuffer(bytearray(cipher.update(bytes(8 * size))), dtype=torch.int64)


def encoded(rank):
    """Fixed point with 24 bits behind the point, as ring encodings have it: the upper bytes are mostly sign."""
    return (update(rank, 20_000).double() * 2**24).long()


def sum_in_the_ring(comm, masked):
    """Pairs (0, 1), (0, 2) and (1, 2) agree on a stream; the lower of them adds it, the other takes it away."""
    x = encoded(comm.rank)
    for other in set(range(RANKS)) - {comm.rank} if masked else ():
        sign = 1 if comm.rank < other else -1
        x += sign * stream(comm.rank + other, len(x))
    return comm.all_reduce(x, "aggregate")


@pytest.mark.parametrize("masked", [False, True])
def test_with_masks_the_tap_sees_no_window_of_an_update(tapped, masked):
    """The same sum either way; its windows are on the wire, since the result is public."""
    sums, capture, _ = tapped(sum_in_the_ring, masked)
    expected = sum(encoded(rank) for rank in range(RANKS))
    assert all(torch.equal(total, expected) for total in sums)
    assert len(capture.windows(expected.numpy().tobytes(), every=8)) > 15_000
    for rank in range(RANKS):
        found = len(capture.windows(encoded(rank).numpy().tobytes(), every=8))
        assert found == 0 if masked else found > 6000


def a_real_run(comm, table):
    """Two rounds of the program; what this rank put into each sum before masks, and what the ledger says it sent."""
    contributions = []

    def noted(owner, name):
        original = getattr(owner, name)

        def note(self, buffer, *rest):
            if isinstance(rest[0], int) or rest[0] == "aggregate":  # a masked sum's round, or a plain one's purpose
                contributions.append(buffer.numpy().tobytes())
            return original(self, buffer, *rest)

        setattr(owner, name, note)

    noted(*((SecureExchange, "sum_") if "privacy" in table else (Comm, "all_reduce")))
    result = train(comm, table)
    sent = [bytes for m in result["history"] for bytes in m["sent"].values()]
    return contributions, sum(sent) + sum(entry.bytes for entry in comm.ledger.take())


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "secure"])
def test_of_a_run_of_the_program_the_tap_sees_updates_unless_they_are_masked(tapped, tmp_path, masked):
    table = configured(tmp_path, model={"name": "mlp", "hidden": 64}, evaluate={"every": 0})
    if masked:
        table["privacy"] = {"secure_aggregation": {"enabled": True}, "guard": True}
    told, capture, _ = tapped(a_real_run, table)
    for contributions, _ in told:
        assert len(contributions) == 2
        for content in contributions:
            found, windows = capture.windows(content, every=64), len(content) // 64
            assert found == [] if masked else len(found) > windows / 4
    counted = sum(sent for _, sent in told)
    assert counted > 2 * (4 * sum(len(c) for c, _ in told) / 3)  # the model went round twice: not of nothing
    assert capture.bytes == pytest.approx(counted, rel=0.05, abs=32_000)  # headers and the store's framing come on top
