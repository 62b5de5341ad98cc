"""What secure aggregation costs a rank: CPU seconds of the protocol's parts, with all parties in one process.

    python -m benchmarks.secure --parties 8 --length 1663370            # McMahan's CNN
    python -m benchmarks.secure --parties 8 --length 1663370 --bits 32 --lost 1
    python -m benchmarks.secure --scale 1000                            # on paper, from measured primitives

The parties pass their messages and vectors from hand to hand, so nothing of a network is measured; one of them is
timed (process time, one thread). The plain round hands the same integers to the same all_reduce: what is printed comes
on top. On paper is a sum of products: primitives measured here, times how often the protocol calls for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from fedddp.flat import FlatSpec
from fedddp.secure import Greeting, Identity, Party
from fedddp.secure.attempt import KEYS_BYTES, digest, reveal_bytes, shares_bytes
from fedddp.secure.envelope import OVERHEAD, REASON_BYTES, digest_of
from fedddp.secure.graph import shape_for
from fedddp.secure.identity import signed_by
from fedddp.secure.masks import add, derive
from fedddp.secure.recovery import Step
from fedddp.secure.shamir import combine, split
from fedddp.types import ServerState

TIMED = 0
PARTS: tuple[str, ...] = ("session start", "hash of the model", "keys", "shares", "mask", "commit", "reveal and unmask")


class Clock:
    """CPU seconds by part, one entry a round."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {part: [] for part in PARTS}
        self._now: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str, on: bool):
        began = time.process_time()
        yield
        if on:
            self._now[name] += time.process_time() - began

    def close(self) -> None:
        """The end of a round."""
        for part, seconds in self._now.items():
            self.spent[part].append(seconds)
        self._now = dict.fromkeys(PARTS, 0.0)


def start(n: int, clock: Clock) -> list[Party]:
    """A session of ``n`` parties."""
    greetings = []
    for rank in range(n):
        with clock.part("session start", rank == TIMED):
            greetings.append(Greeting(rank, n, Identity.new(), None, b"benchmark"))
    sessions = []
    for rank, greeting in enumerate(greetings):
        with clock.part("session start", rank == TIMED):
            sessions.append(greeting.meet([g.message for g in greetings]))
    confirmations = [session.confirmation() for session in sessions]
    with clock.part("session start", True):
        sessions[TIMED].check_confirmations(confirmations)
    clock.close()
    return [Party(session) for session in sessions]


def play(parties: list[Party], round: int, inputs: Sequence[Tensor], lost: int, clock: Clock) -> Tensor:
    """One round, in which the last ``lost`` parties are lost after they have masked; what the timed party gets."""
    n = len(inputs[0])
    model = ServerState(inputs[0].float(), FlatSpec(("w",), ((n,),), n, n, torch.float32))
    with clock.part("hash of the model", True):
        state = digest_of(model)
    for rank, party in enumerate(parties):
        with clock.part("keys", rank == TIMED):
            party.begin(round, inputs[rank], state)
    left = parties[: len(parties) - lost]
    total = attempt(parties, inputs[0], clock)
    if lost:
        recover(left, clock, len(parties))
        total = attempt(left, inputs[0], clock, count=len(parties))
    for rank, party in enumerate(left):
        received = total.clone()
        with clock.part("commit", rank == TIMED):
            party.summed(received)
    for step, part in ((Step.COMMIT, "commit"), (Step.REVEAL, "reveal and unmask")):
        gather(left, step, part, clock, count=len(parties))
    clock.close()
    for party in parties[len(left) :]:
        party._aborted("lost")  # so that the next round can begin
    for party in parties:
        party.regrouped(range(len(parties)), left[0].epoch)
    result = parties[TIMED].result
    assert result is not None
    return result


def attempt(parties: list[Party], like: Tensor, clock: Clock, count: int = 0) -> Tensor:
    """Keys, shares and masks of ``parties``; the masked sum."""
    for step, part in ((Step.KEYS, "keys"), (Step.SHARES, "shares")):
        gather(parties, step, part, clock, count)
    total = torch.zeros_like(like)
    for rank, party in enumerate(parties):
        with clock.part("mask", rank == TIMED):
            masked = party.masked()
        total += masked
    return total


def recover(left: list[Party], clock: Clock, count: int) -> None:
    """Lose the parties that are not ``left``: these exchange their statuses and begin a new attempt."""
    for party in left:
        party.regrouped([p.rank for p in left], party.epoch + 1)
    statuses = [b""] * count
    for party in left:
        with clock.part("keys", party.rank == TIMED):
            statuses[party.rank] = party.status()
    for party in left:
        with clock.part("keys", party.rank == TIMED):
            party.follow(statuses)


def gather(parties: list[Party], step: Step, part: str, clock: Clock, count: int = 0) -> None:
    messages = [b""] * (count or len(parties))
    for party in parties:
        assert party.step is step
        with clock.part(part, party.rank == TIMED):
            messages[party.rank] = party.message()
    for party in parties:
        with clock.part(part, party.rank == TIMED):
            party.receive(messages)


def measure(n: int, length: int, dtype: torch.dtype, lost: int, rounds: int) -> Clock:
    """``rounds`` rounds after one that warms up; every sum is compared with the plain one."""
    clock, warm = Clock(), Clock()
    parties = start(n, clock)
    inputs = [torch.arange(length, dtype=dtype) * (rank - 3) for rank in range(n)]
    expected = torch.stack(inputs[: n - lost]).sum(0, dtype=dtype)
    for round in range(rounds + 1):
        total = play(parties, round, inputs, lost, clock if round else warm)
        assert torch.equal(total, expected)
    return clock


def best(work: Callable[[], object], times: int = 20) -> float:
    """CPU seconds of one ``work``: the median of several."""
    goes = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(times):
            work()
        goes.append((time.process_time() - began) / times)
    return statistics.median(goes)


def primitives(length: int, dtype: torch.dtype, k: int, threshold: int) -> dict[str, float]:
    """CPU seconds of each operation that the protocol is made of."""
    identity, y = Identity.new(), torch.zeros(length, dtype=dtype)
    signature = identity.sign(b"x" * 200)
    greetings = [Greeting(rank, 3, Identity.new(), None, b"") for rank in range(3)]
    points, secret = range(1, k + 2), os.urandom(32)
    shares = split(secret, points, threshold)
    agreement = greetings[0]._agreement
    public = greetings[1]._agreement.public_key()
    began = time.process_time()
    for shift in range(5):  # other holders each time: coefficients are kept for those seen before
        moved = {x + 1 + shift: shares[x] for x in points}
        with suppress(ValueError):  # of no use as a secret, but of the same cost
            combine(moved, threshold)
    restoring = (time.process_time() - began) / 5
    return {
        "sign": best(lambda: identity.sign(b"x" * 200)),
        "verify": best(lambda: signed_by(identity.public, signature, b"x" * 200)),
        "agree": best(lambda: agreement.exchange(public)),
        "derive": best(lambda: derive(secret, secret, b"purpose", b"context")),
        "split": best(lambda: split(secret, points, threshold), 3),
        "restore": restoring,
        "mask": best(lambda: add(y, [(secret, 1)]), 3),
        "hash": best(lambda: digest(y), 3),
    }


def on_paper(
    n: int, length: int, dtype: torch.dtype, lost: int
) -> tuple[dict[str, float], dict[str, float], tuple[int, int]]:
    """Seconds a rank a round of ``n`` parties by part, the primitives they are made of, and (k, threshold).

    If ``lost`` parties are lost after they have masked, the others begin a second attempt.
    """
    k, threshold = shape_for(n)
    p = primitives(length, dtype, k, threshold)
    verify = n * p["verify"] + p["sign"]
    attempts = 2 if lost else 1
    return (
        {
            "keys": attempts * (verify + 2 * k * p["agree"] + k * p["derive"]),
            "shares": attempts * (verify + p["split"] + 2 * k * p["derive"]),
            "mask": attempts * (k + 1) * p["mask"],
            "commit": verify + p["hash"],
            "reveal and unmask": verify + (n - lost) * (p["restore"] + p["derive"] + p["mask"]),
        },
        p,
        (k, threshold),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secure", description="what secure aggregation costs")
    parser.add_argument("--parties", type=int, default=8)
    parser.add_argument("--length", type=int, default=1_663_370, help="integers in the vector")
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    parser.add_argument("--lost", type=int, default=0, help="parties that are lost after they have masked")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, metavar="N", help="N parties on paper instead")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    dtype = torch.int64 if chosen.bits == 64 else torch.int32
    if chosen.scale:
        parts, p, (k, threshold) = on_paper(chosen.scale, chosen.length, dtype, chosen.lost)
        print(f"{chosen.scale} parties ({chosen.lost} lost), {chosen.length} x {chosen.bits} bits, on paper")
        print(f"  {k} neighbours each, threshold {threshold}; messages of all parties, gathered by each rank:")
        sizes = {"keys": KEYS_BYTES, "shares": shares_bytes(k), "commit": 64, "reveal": reveal_bytes(k)}
        for name, size in sizes.items():
            print(f"  {name:<22} {chosen.scale * (4 + OVERHEAD + max(size, REASON_BYTES)) / 1e6:8.3f} MB")
        for name, seconds in p.items():
            print(f"  one {name:<18} {1e3 * seconds:10.4f} ms")
    else:
        clock = measure(chosen.parties, chosen.length, dtype, chosen.lost, chosen.rounds)
        parts = {part: statistics.median(clock.spent[part][1:]) for part in PARTS[1:]}
        print(
            f"{chosen.parties} parties ({chosen.lost} lost), {chosen.length} x {chosen.bits} bits, CPU seconds a rank"
        )
        print(f"  {'session start, once':<22} {clock.spent['session start'][0]:8.4f} s")
    for part, seconds in parts.items():
        print(f"  {part:<22} {seconds:8.4f} s")
    print(f"  {'a round':<22} {sum(parts.values()):8.4f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
