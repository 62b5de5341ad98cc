"""Ranks that start a round from different models: nobody masks anything (Pasquini, Francati and Ateniese 2022)."""

from dataclasses import replace

import pytest
import torch

from fedddp.comm import CommError
from fedddp.secure import Identity, Party, SecureExchange
from fedddp.secure.attempt import Attempt, OtherModel
from fedddp.secure.envelope import NO_STATE, digest_of, hashing
from fedddp.types import ServerState
from tests.helpers.coalition import sessions_of
from tests.helpers.support import flat
from tests.helpers.threaded import Death, World

W = torch.arange(5.0)
SERVER = ServerState(W, flat(5), {"momentum": torch.ones(5), "c": torch.zeros(5)})


@pytest.mark.parametrize(
    "other",
    [
        replace(SERVER, w=torch.tensor([0.0, 1, 2, 4, 3])),  # of the same checksum
        replace(SERVER, w=W.double()),
        replace(SERVER, extra={"momentum": torch.ones(5), "c": torch.tensor([0.0, 0, 0, 0, -0.0])}),
        replace(SERVER, extra={"momentum": torch.ones(5)}),
        replace(SERVER, extra={"c": torch.ones(5), "momentum": torch.zeros(5)}),
    ],
)
def test_the_digest_is_of_every_bit_of_the_model_and_of_the_server_s_memory(other):
    assert digest_of(other) != digest_of(SERVER) != NO_STATE


def test_the_digest_is_of_what_a_state_holds_and_not_of_how():
    other = ServerState(
        torch.stack([W, W], 1)[:, 0], flat(5), {"c": torch.zeros(5), "momentum": torch.ones(5)}, round=3
    )
    assert digest_of(other) == digest_of(SERVER) == hashing(SERVER)()
    assert len(digest_of(ServerState(W.bfloat16(), flat(5), {"clip": torch.tensor(1.0)}))) == 32


@pytest.mark.parametrize("lost", [False, True])
def test_a_rank_with_another_model_ends_the_run_before_anything_is_masked(monkeypatch, lost):
    """Also in an attempt that follows a loss."""
    masked, mask = [], Attempt.mask
    monkeypatch.setattr(Attempt, "mask", lambda attempt, y: masked.append(attempt.rank) or mask(attempt, y))

    def body(comm):
        exchange = SecureExchange(comm, Identity.new(), None, b"")
        exchange.begin(SERVER)
        exchange.sum_(torch.ones(3, dtype=torch.int64), 0)
        exchange.begin(replace(SERVER, w=W.flip(0)) if comm.rank == 2 else SERVER)
        with pytest.raises(CommError, match=r"round 2: the model on rank\(s\) \[2\] is not the one on rank 0"):
            exchange.sum_(torch.ones(3, dtype=torch.int64), 1)
        return "ended"

    deaths = [Death(3, "secure keys", "before", 1)] if lost else []
    results = World(4, deaths).run(body)
    assert results == dict.fromkeys(range(3 if lost else 4), "ended")
    assert len(masked) == 4  # in the first round


def test_whoever_has_another_model_shares_no_mask_and_believes_no_message():
    """Even if its keys were let pass."""
    parties = [Party(session) for session in sessions_of(3)]
    for party, state in zip(parties, (b"a" * 32, b"a" * 32, b"b" * 32), strict=True):
        party.begin(0, torch.zeros(3, dtype=torch.int64), state)
    keys = [party.message() for party in parties]
    bodies = {rank: parties[rank]._progress.attempt.keys() for rank in range(3)}
    for party in parties:
        alike = {rank: party._progress.attempt.place.state + body[32:] for rank, body in bodies.items()}
        party._progress.attempt.agree(alike)
    pairs = [party._progress.attempt._pairs for party in parties]
    assert pairs[0][1] == pairs[1][0]
    assert pairs[0][2] != pairs[2][0]
    for party in parties:
        with pytest.raises(OtherModel):
            party.receive(keys)
        assert party.step.name == "IDLE"
