"""Secure aggregation over real ranks of which one is killed at some step: a right sum or an aborted round."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedddp.comm import LostRank
from fedddp.evaluation.server import Scorer
from fedddp.federation import federate
from fedddp.secure import Identity, Party, Roster, RoundAborted, SecureExchange
from fedddp.secure.recovery import Step
from tests.helpers.distributed import configured, experiment_of

STEPS = ("secure keys", "secure shares", "aggregate", "secure commit", "secure reveal")
GRACE = 1.25
ROUNDS = 3
LENGTH = 1000


def vector(rank, round, dtype, length=LENGTH):
    """Another power of two a rank, so that the sum says who is in it; close to the ring's end, so that it wraps."""
    share = torch.full((length,), torch.iinfo(dtype).max // 2, dtype=dtype)
    share[0] = 2**rank
    share[-1] = -(7**rank) * (round + 1)
    return share


def of_ranks(ranks, round, dtype, length=LENGTH):
    return torch.stack([vector(rank, round, dtype, length) for rank in ranks]).sum(0, dtype=dtype)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def strike(comm, step, how):
    """Die at a step: before anything is handed to the transport, a moment after, or when it is complete here."""
    if how == "after":
        original = comm.all_reduce

        def then_die(x, purpose):
            result = original(x, purpose)
            return kill() if purpose == step else result

        comm.all_reduce = then_die
    else:
        how_soon = kill if how == "before" else threading.Timer(0.01, kill).start
        comm.watch = lambda purpose, _: how_soon() if purpose == step else None


def rounds(comm, victim, step, how, dtype, length=LENGTH, roster=None):
    """Who was in the sum of each round, or why it was aborted."""
    regroup = comm.regroup
    comm.regroup = lambda: regroup(GRACE)
    exchange, told = SecureExchange(comm, identity(comm.rank), roster, b"configuration"), []
    for round in range(ROUNDS):
        if round == 1 and comm.rank == victim:
            strike(comm, step, how)
        try:
            total = exchange.sum_(vector(comm.rank, round, dtype, length), round)
            members = [rank for rank in range(comm.world_size) if int(total[0]) >> rank & 1]
            assert torch.equal(total, of_ranks(members, round, dtype, length))
            told.append(members)
        except RoundAborted as reason:
            told.append(str(reason))
        except RuntimeError as reason:
            told.append(f"{type(reason).__name__}: {reason}")
    while True:  # the others may need this rank's help to end
        try:
            comm.barrier("end")
            return told
        except LostRank:
            comm.regroup()
            exchange.settle()


def identity(rank):
    return Identity.new(lambda n: bytes([rank + 1]) * n)


def survivors_agree(results, victim):
    told = [result for rank, result in enumerate(results) if rank != victim]
    for one in told:
        assert one[:2] == told[0][:2]
        assert isinstance(one[2], str) == isinstance(told[0][2], str)
    return told[0]


@pytest.mark.parametrize("step", STEPS)
def test_one_of_four_is_killed(run_ranks, step):
    results = run_ranks(rounds, 4, 2, step, "before", torch.int64, timeout=3.0, lost=(2,))
    summed = [0, 1, 2, 3] if step in STEPS[3:] else [0, 1, 3]
    assert survivors_agree(results, 2) == [[0, 1, 2, 3], summed, [0, 1, 3]]


@pytest.mark.parametrize("step", STEPS)
def test_one_of_three_is_killed(run_ranks, step):
    """The sum of three that is complete is finished; of two there is none."""
    results = run_ranks(rounds, 3, 2, step, "before", torch.int32, timeout=3.0, lost=(2,))
    told = survivors_agree(results, 2)
    assert told[0] == [0, 1, 2]
    assert told[1] == [0, 1, 2] if step in STEPS[3:] else "3 are needed" in told[1]
    assert "3 are needed" in told[2]


@pytest.mark.parametrize("how", ["during", "after"])
def test_one_of_four_is_killed_while_the_vectors_are_summed(run_ranks, how):
    results = run_ranks(rounds, 4, 1, "aggregate", how, torch.int64, 2_000_000, timeout=3.0, lost=(1,))
    told = survivors_agree(results, 1)
    assert told[1] in ([0, 1, 2, 3], [0, 2, 3])
    assert told[2] == [0, 2, 3]


def evicted_by_a_stranger(comm):
    """Like `rounds` with a roster, where somebody writes to the store that ranks 0 and 1 alone go on."""
    store = comm._heartbeat.store

    def write():
        store.get("regroup/0")  # as soon as a rank asks to go on
        store.set("regroup/0/members", '{"0": "1|", "1": "1|"}|')

    if comm.rank == 1:
        threading.Thread(target=write, daemon=True).start()
    roster = Roster({rank: identity(rank).public for rank in range(4)})
    return rounds(comm, 3, "aggregate", "before", torch.int64, roster=roster)


def test_a_stranger_at_the_store_evicts_nobody_from_a_run_with_a_roster(run_ranks):
    results = run_ranks(evicted_by_a_stranger, 4, timeout=3.0, lost=(3,))
    assert survivors_agree(results, 3) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]


class Liar(Party):
    """After the second loss it says that it has the sum, and supplies rank 0's masked vector plus its own."""

    seen: Path

    def _status(self):
        status = super()._status()
        return replace(status, step=Step.COMMIT) if self.epoch == 2 and self.step is Step.MASK else status

    def masked(self):
        lies = self._now.supplier == self.rank and not self._now.commitment
        return torch.load(self.seen) + self._now.attempt.mask(self._now.x.clone()) if lies else super().masked()


class Replayer(Party):
    """After the second loss it repeats what it said after the first."""

    old = b""

    def status(self):
        self.old = self.old or super().status()
        return self.old


def lied_to(comm, seen, liar):
    """What a rank gets from two rounds, in the first of which ranks 5 and 4 are killed and rank 1 lies."""
    regroup = comm.regroup
    comm.regroup = lambda: regroup(GRACE)
    Liar.seen = seen
    party = liar if comm.rank == 1 else Party
    exchange, told, reduce = SecureExchange(comm, Identity.new(), None, b"", party=party), [], comm.all_reduce

    def tapped(x, purpose):
        if purpose == "aggregate" and comm.rank == 0 and not seen.exists():
            torch.save(x, seen)
        return reduce(x, purpose)

    comm.all_reduce = tapped
    if comm.rank > 3:
        strike(comm, {5: "secure keys", 4: "aggregate"}[comm.rank], "before")
    for round in range(2):
        try:
            told.append(exchange.sum_(vector(comm.rank, round, torch.int64), round))
        except RoundAborted as reason:
            told.append(str(reason))
    return told


def test_a_rank_that_says_it_has_the_sum_does_not_unmask_another(run_ranks, tmp_path):
    """It chooses the sum that all commit to; unmasked is what ranks 0 to 4 masked: it has noise, and no update."""
    results = run_ranks(lied_to, 6, tmp_path / "seen", Liar, timeout=4.0, lost=(4, 5))
    for first, second in results[:4]:
        assert not torch.equal(first[1:-1], of_ranks([0, 1], 0, torch.int64)[1:-1])
        assert len(first[1:-1].unique()) == LENGTH - 2  # equal in each one's vector, and so in a sum of some of them
        assert torch.equal(second, of_ranks(range(4), 1, torch.int64))


def test_a_rank_that_repeats_an_old_status_makes_the_round_abort(run_ranks, tmp_path):
    results = run_ranks(lied_to, 6, tmp_path / "seen", Replayer, timeout=4.0, lost=(4, 5))
    for first, second in results[:4]:
        assert "rank 1's message is not signed by it" in first
        assert torch.equal(second, of_ranks(range(4), 1, torch.int64))


def train_and_lose(comm, table):
    """Rank 3 dies in the second round's local training; the others finish the run and count what they tested."""
    experiment = experiment_of(comm, table)
    trainer, counted = experiment.federation.trainer, []
    if comm.rank == 3:
        train = trainer.train
        trainer.train = lambda local, *rest: (
            os.kill(os.getpid(), signal.SIGKILL) if local.round else train(local, *rest)
        )
    scored = Scorer.score

    def counting(self, counts, mistakes, **more):
        score = scored(self, counts, mistakes, **more)
        counted.append(int(score.confusion.sum()))
        return score

    Scorer.score = counting
    federate(experiment.federation, experiment.server)
    history = experiment.federation.telemetry.history
    return counted, [(m["participants"], m["failures"]) for m in history], comm.members


def test_a_run_goes_on_without_a_lost_rank_and_tests_on_all_test_examples(run_ranks, tmp_path):
    table = configured(
        tmp_path,
        run={"rounds": 4},
        privacy={"secure_aggregation": {"enabled": True}},
        data__partition={"num_clients": 4},
    )
    results = run_ranks(train_and_lose, 4, table, lost=(3,), timeout=20.0, limit=120.0)
    for counted, taken, members in results[:3]:
        assert members == (0, 1, 2)
        assert counted == [100] * 4
        assert taken == [(4, 0), (3, 1), (3, 1), (3, 1)]
