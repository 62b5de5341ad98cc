"""A message of the protocol: one byte, a body, and a signature that binds both to where they belong.

Signed is: the kind of message, the session's transcript, the round, the epoch, the sender, the members,
the model that the round starts from (except with the first message, which tells it), and the body. So a message of
another session, round, epoch, step, sender, membership or model is refused like a forged one.

The model is part of it since ranks with different models share no masks: a victim that starts from another model than
the rest could be read out of the sum (Pasquini, Francati and Ateniese 2022, "Eluding secure aggregation in federated
learning via model inconsistency").
"""

import hashlib
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..types import ServerState
from .hello import SIGNATURE, Session
from .identity import signed_by

STATE_BYTES = 32
NO_STATE = bytes(STATE_BYTES)
OVERHEAD = 1 + SIGNATURE
REASON_BYTES = 160
_USUAL, _ABORTED = b"\0", b"\1"


def digest_of(server: ServerState) -> bytes:
    """SHA-256 of w_t and of what the server remembers besides: names, types, sizes and bytes."""
    total = hashlib.sha256(b"fedddp state\0")
    for name, tensor in (("w", server.w), *sorted(server.extra.items())):
        flat = tensor.detach().cpu().contiguous().view(-1)
        total.update(f"{name}\0{flat.dtype}\0{len(flat)}\0".encode())
        total.update(flat.view(torch.uint8).numpy().data)
    return total.digest()


def hashing(server: ServerState) -> Callable[[], bytes]:
    """Begin to hash in a thread of its own, beside the clients' training; a function that waits for the digest."""
    done: list[bytes] = []
    thread = threading.Thread(target=lambda: done.append(digest_of(server)), daemon=True)
    thread.start()

    def digest() -> bytes:
        thread.join()
        return done[0]

    return digest


class Refused(ValueError):
    """A message that is not believed; says why."""


class RefusedElsewhere(Refused):
    """A signed message by which another party aborts the round; everybody reads the same."""


@dataclass(frozen=True)
class RoundPlace:
    """Where a message belongs; also the context of the keys that serve there.

    ``epoch``: how often the members were decided anew when an attempt began. A party begins one attempt at a round in
    an epoch, so round and epoch name an attempt. ``state``: of the model that the round starts from.
    """

    round: int
    epoch: int
    members: tuple[int, ...]
    state: bytes = NO_STATE

    @property
    def context(self) -> bytes:
        """The place in 80 bytes."""
        ranks = struct.pack(f">{len(self.members)}I", *self.members)
        return struct.pack(">qq", self.round, self.epoch) + hashlib.sha256(ranks).digest() + self.state


def seal(session: Session, place: RoundPlace, kind: str, body: bytes) -> bytes:
    """This party's message."""
    return _sealed(session, place, kind, _USUAL + body)


def seal_refusal(session: Session, place: RoundPlace, kind: str, reason: str) -> bytes:
    """This party's message where it has found what aborts the round."""
    return _sealed(session, place, kind, _ABORTED + reason.encode()[:REASON_BYTES])


def _sealed(session: Session, place: RoundPlace, kind: str, text: bytes) -> bytes:
    return text + session.identity.sign(_bound(session, place, kind, session.rank) + text)


def _bound(session: Session, place: RoundPlace, kind: str, sender: int) -> bytes:
    """What a signature covers besides the message."""
    sent = kind.encode().ljust(8, b"\0") + session.transcript + struct.pack(">I", sender)
    return b"fedddp secure\0" + sent + place.context


def unseal(session: Session, place: RoundPlace, kind: str, sender: int, message: bytes) -> bytes:
    """The body of a party's message. Raises Refused, or RefusedElsewhere."""
    if not message:
        raise Refused(f"rank {sender} sent nothing")
    text, signature = message[:-SIGNATURE], message[-SIGNATURE:]
    if not text or not signed_by(session.keys[sender], signature, _bound(session, place, kind, sender) + text):
        raise Refused(f"rank {sender}'s message is not signed by it for this step")
    if text[:1] == _ABORTED:
        raise RefusedElsewhere(f"rank {sender} refused: {text[1:].decode(errors='replace')}")
    return text[1:]
