"""Parties that deviate, with the network and the store on their side: n = 3 to 9, 0 to 2 losses, every number of them
below the bound n - 2 floor(n/3) that secure/reveal.py proves. They learn one sum a round, over floor(n/3) + 1 honest
parties or more; with as many as the bound, or without the rule, they learn more."""

import itertools
import random
from dataclasses import replace

import pytest

from fedddp.secure import RoundAborted, quorum
from fedddp.secure.envelope import Refused, RoundPlace, seal, unseal
from fedddp.secure.recovery import Action, Outcome, Status, Step
from fedddp.secure.reveal import RevealRule
from tests.helpers.coalition import Coalition
from tests.helpers.transcript import Recorder, expected

pytestmark = pytest.mark.slow

BELOW = [
    (n, colluders, losses)
    for n in range(3, 10)
    for colluders in range(n - 2 * (n // 3))
    for losses in range(3)
    if n - colluders - losses > 0
]


def lies(round, epochs=(0, 1)):
    """Statuses that a colluder may claim of a round, so that they can lead somewhere."""
    steps = [Status(step, round, epoch, round - 1, Outcome.DONE) for step in Step for epoch in epochs]
    ended = [Status(Step.IDLE, round, -1, round, outcome) for outcome in Outcome]
    behind = [Status(step, round - 1, 0, round - 1, Outcome.NONE) for step in (Step.KEYS, Step.REVEAL)]
    return steps + ended + behind


def least(n):
    return n // 3 + 1


@pytest.mark.parametrize(("n", "colluders", "losses"), BELOW)
def test_lying_statuses_and_split_views(monkeypatch, n, colluders, losses):
    """All have masked; some are led to the sum of all, the others, and then the same ones, to that of fewer."""
    for some in sorted({0, 1, min(quorum(n), n - losses) - colluders, n - colluders - losses}):
        recorder, coalition = split(monkeypatch, n, colluders, losses, some)
        recorder.check_one_sum_a_round(coalition.ranks, least(n))


def split(monkeypatch, n, colluders, losses, some):
    """``some`` of the honest that are left are told that the others are lost, and the others that they are.

    When the former have revealed, the colluders say that they are still in the round before, so that it begin anew.
    """
    with monkeypatch.context() as patch:
        recorder, coalition = Recorder(patch), Coalition(n, colluders)
        alive = list(coalition.honest)[: n - colluders - losses]
        coalition.begin(0)
        coalition.through(coalition.honest, Step.MASK)
        for rank in coalition.honest:
            coalition.speak(rank)
        first, second = alive[:some], alive[some:]
        for rank in first:
            coalition.listen(rank)
        coalition.regroup(first, 1, lambda rank, to: Status(Step.COMMIT, 0, 0, -1, Outcome.NONE))
        coalition.regroup(second, 1, lambda rank, to: Status(Step.MASK, 0, 0, -1, Outcome.NONE))
        coalition.through(first, Step.REVEAL)
        for rank in first:
            coalition.speak(rank)
        coalition.through(second, Step.IDLE)
        again = first[: max(quorum(n) - colluders, 0)]
        coalition.regroup(again, 2, lambda rank, to: Status(Step.KEYS, -1, 0, -1, Outcome.NONE))
        coalition.through(again, Step.IDLE)
    return recorder, coalition


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 9])
def test_as_many_colluders_as_the_bound_learn_two_sums_of_a_round(monkeypatch, n):
    """The control: the bound is exact."""
    recorder, coalition = split(monkeypatch, n, 2 * quorum(n) - n, 0, n - quorum(n))
    learned = recorder.of_others(recorder.learned(coalition.ranks), coalition.ranks)
    honest = set(coalition.honest)
    first = set(range(n - quorum(n)))
    assert learned == expected({0: first}) | expected({0: honest - first})


def test_without_the_rule_the_same_attack_learns_a_difference(monkeypatch):
    """The control: parties that begin anew after they have committed give their vectors in two sums."""
    recorder, coalition = split(monkeypatch, 5, 2, 0, 3)
    assert recorder.of_others(recorder.learned(coalition.ranks), coalition.ranks) == expected({0: range(3)})
    assert "after this party had committed" in coalition.reasons[0]
    monkeypatch.setattr(RevealRule, "committed", lambda rule, round: False)
    recorder, coalition = split(monkeypatch, 5, 2, 0, 3)
    learned = recorder.of_others(recorder.learned(coalition.ranks), coalition.ranks)
    assert learned == expected({0: [2]}) | expected({0: range(2)})


def wander(monkeypatch, n, colluders, losses, seed):
    """An adversary that draws whom it leads where: some go through a number of steps, then they alone are left."""
    drawn = random.Random(f"{n} {colluders} {losses} {seed}")
    with monkeypatch.context() as patch:
        recorder, coalition = Recorder(patch), Coalition(n, colluders)
        alive = list(coalition.honest)
        coalition.begin(0)
        for epoch in range(1, 8):
            coalition.through(alive, drawn.choice([Step.MASK, Step.COMMIT]))
            group = sorted(drawn.sample(alive, drawn.randint(min(len(alive), quorum(n) - colluders), len(alive))))
            coalition.through(group, drawn.choice([Step.COMMIT, Step.REVEAL, Step.REVEAL]))
            for rank in group:
                coalition.speak(rank)
                if not drawn.randrange(4):
                    coalition.listen(rank, drop=drawn.sample(range(n), drawn.randrange(2)))
            if epoch == 2 and losses:
                del alive[-losses:]
            again = Status(Step.KEYS, -1, 0, -1, Outcome.NONE)
            claims = drawn.choice([[again], drawn.choices(lies(0, range(epoch)), k=2)])
            group = sorted(drawn.sample(alive, drawn.randint(min(len(alive), quorum(n) - colluders), len(alive))))
            coalition.regroup(group, epoch, lambda rank, to, claims=claims: drawn.choice(claims))
            if epoch == 5:
                coalition.begin(1, [rank for rank in alive if coalition.at(rank)[1] is Step.IDLE])
    return recorder, coalition


@pytest.mark.parametrize(("n", "colluders", "losses"), BELOW)
def test_an_adversary_that_tries_this_and_that(monkeypatch, n, colluders, losses):
    for seed in range(2):
        recorder, coalition = wander(monkeypatch, n, colluders, losses, seed)
        recorder.check_one_sum_a_round(coalition.ranks, least(n))


# -- single statements ---------------------------------------------------------------------------------------------


def masked_by_all(n, colluders):
    """All honest parties have masked; nobody has a sum."""
    coalition = Coalition(n, colluders)
    coalition.begin(0)
    coalition.through(coalition.honest, Step.MASK)
    for rank in coalition.honest:
        coalition.speak(rank)
    return coalition


@pytest.mark.parametrize("whose", ["a colluder's", "an honest party's"])
def test_a_status_of_another_epoch_is_refused(whose):
    """A replayed one would let ranks choose different plans."""
    coalition = masked_by_all(4, 1)
    honest, members = coalition.honest, (0, 1, 2, 3)
    for party_ in honest.values():
        party_.regrouped(members, 1)
    claimed = Status(Step.MASK, 0, 0, -1, Outcome.NONE)
    old = {rank: party_.status() for rank, party_ in honest.items()} | {3: coalition.status(3, members, 1, claimed)}
    for epoch, replayed in ((1, False), (2, True)):
        victim = honest[epoch - 1]
        for party_ in honest.values():
            party_.regrouped(members, epoch)
        messages = [honest[rank].status() for rank in honest] + [coalition.status(3, members, epoch, claimed)]
        if replayed:
            rank = 3 if whose == "a colluder's" else 2
            messages[rank] = old[rank]
            with pytest.raises(RoundAborted, match=f"rank {rank}'s message is not signed by it for this step"):
                victim.follow(messages)
        else:
            assert victim.follow(messages).action is Action.RESTART


def test_a_message_of_another_round_epoch_or_membership_is_refused():
    coalition = Coalition(4, 1)
    coalition.begin(0)
    coalition.through(coalition.honest, Step.IDLE)
    coalition.begin(1)
    for rank in coalition.honest:
        coalition.speak(rank)
    now = coalition.at(0)[0]
    for place in (replace(now, round=0), replace(now, epoch=1), replace(now, members=(0, 1, 2))):
        message = seal(coalition.sessions[3], place, "KEYS", bytes(64))
        with pytest.raises(Refused, match="rank 3's message is not signed by it for this step"):
            unseal(coalition.sessions[0], now, "KEYS", 3, message)
    for (place, step, rank), message in coalition.said.items():
        if place.round == 0:
            with pytest.raises(Refused, match="is not signed by it"):
                unseal(coalition.sessions[0], now, step.name, rank, message)


@pytest.mark.parametrize("idle", [False, True])
def test_no_number_in_a_status_crashes_an_honest_party(idle):
    """Of 2^63 - 1 the next one does not fit its field. The round is aborted at worst, and the next one begins."""
    numbers = (-(2**63), 2**63 - 1)
    for step, round, epoch, last in itertools.product((Step.IDLE, Step.MASK, Step.REVEAL), numbers, numbers, numbers):
        coalition = Coalition(4, 1) if idle else masked_by_all(4, 1)
        claimed = Status(step, round, epoch, last, Outcome.DONE)
        coalition.regroup(list(coalition.honest), 1, lambda rank, to, claimed=claimed: claimed)
        coalition.through(coalition.honest, Step.IDLE)
        coalition.begin(1)
        assert all(party_.step is Step.KEYS for party_ in coalition.honest.values())


def test_what_is_no_status_aborts_the_round():
    for text in (b"", b"\xff" * 26, bytes(25), bytes(27)):
        coalition = masked_by_all(4, 1)
        coalition.status = lambda rank, members, epoch, _, text=text, c=coalition: seal(
            c.sessions[rank], RoundPlace(-1, epoch, members), "STATUS", text
        )
        coalition.regroup(list(coalition.honest), 1, lambda rank, to: None)
        assert len(coalition.reasons) == 3


@pytest.mark.parametrize("left", [(0, 1, 2), (0, 1, 2, 3), (0, 3)])
def test_forged_members_of_one_party_leave_it_alone(monkeypatch, left):
    """The store tells one party of other members than the rest: nobody signs for these."""
    recorder = Recorder(monkeypatch)
    coalition = masked_by_all(5, 1)
    coalition.regroup([0], 1, lambda rank, to: Status(Step.MASK, 0, 0, -1, Outcome.NONE), left=left)
    coalition.regroup([1, 2, 3], 1, lambda rank, to: Status(Step.MASK, 0, 0, -1, Outcome.NONE), left=(1, 2, 3, 4))
    assert "after a loss: rank" in coalition.reasons[0]
    coalition.through(coalition.honest, Step.IDLE)
    assert [party_.result is not None for party_ in coalition.honest.values()] == [False, True, True, True]
    recorder.check({0: (1, 2, 3)}, {4})


def test_who_spoils_its_own_reveal_learns_the_sum_and_the_others_abort(monkeypatch):
    """It has the others' shares by then: the sum of all, which it was to learn anyway."""
    recorder, coalition = Recorder(monkeypatch), Coalition(5, 2)
    coalition.begin(0)
    coalition.through(coalition.honest, Step.REVEAL)
    coalition.forged = lambda rank, to: seal(coalition.sessions[rank], coalition.at(to.rank)[0], "REVEAL", bytes(165))
    coalition.advance(coalition.honest)
    assert ["is not the one it sealed" in reason for reason in coalition.reasons] == [True] * 3
    assert all(party_.result is None for party_ in coalition.honest.values())
    recorder.check({0: range(5)}, {3, 4})


# -- the rule by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "left", "reason"),
    [
        ((0, 1, 2, 3, 4), (0, 1, 2, 3), None),
        ((0, 1, 2, 3, 4), (0, 1, 2), "3 left: 4 are needed"),
        ((0, 1, 2), (0, 1, 2), "3 parties in the sum"),
        ((0, 1, 2, 3), (0, 1, 2, 3, 4), "commit to a sum over"),
        ((0, 1, 2, 3, 4), (1, 2, 3, 4), "not with 0"),
    ],
)
def test_a_certificate_takes_a_quorum_of_the_attempt_with_oneself(members, left, reason):
    rule, place = RevealRule(0, 6), RoundPlace(0, 0, members)
    rule.commit(place, b"sum")
    if reason is None:
        assert rule.certify(place, dict.fromkeys(left, b"sum")).place == place
        return
    with pytest.raises(Refused, match=reason):
        rule.certify(place, dict.fromkeys(left, b"sum"))


def test_of_a_round_one_sum_is_committed_to():
    rule, place = RevealRule(0, 4), RoundPlace(3, 1, (0, 1, 2, 3))
    assert not rule.committed(3)
    with pytest.raises(Refused, match="commit to a sum"):
        rule.certify(place, dict.fromkeys(range(4), b""))
    rule.commit(place, b"sum")
    rule.commit(place, b"sum")
    elsewhere = replace(place, epoch=2), replace(place, members=(0, 1, 2))
    for other, sum_ in ((place, b"other"), *((other, b"sum") for other in elsewhere)):
        with pytest.raises(Refused, match="another sum the second time"):
            rule.commit(other, sum_)
        with pytest.raises(Refused):
            rule.certify(other, dict.fromkeys(range(4), sum_))
    with pytest.raises(Refused, match="rank 2 has another sum"):
        rule.certify(place, {0: b"sum", 1: b"sum", 2: b"other"})
    assert rule.committed(3)
    rule.commit(replace(place, round=4), b"next")
    assert rule.committed(3)
