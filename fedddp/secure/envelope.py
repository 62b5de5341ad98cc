"""A message of the protocol: one byte, a body, and a signature that binds both to where they belong.

Signed is: the kind of message, the session's transcript, the round, the attempt's serial number, the sender, the
members, and the body. So a message of another session, round, attempt, step, sender or membership is refused
like a forged one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .hello import SIGNATURE, Session
from .identity import signed_by

OVERHEAD = 1 + SIGNATURE
REASON_BYTES = 160
_USUAL, _BURNT = b"\0", b"\1"


class Refused(ValueError):
    """A message that is not believed; says why."""


class RefusedElsewhere(Refused):
    """A signed message by which another party burns the round; everybody reads the same."""


def digest_of(members: Sequence[int]) -> bytes:
    """SHA-256 over ascending ranks: short for a set."""
    return hashlib.sha256(struct.pack(f">{len(members)}I", *sorted(members))).digest()


@dataclass(frozen=True)
class Place:
    """Where a message belongs; also the context of the keys that serve there."""

    kind: bytes
    round: int
    serial: int
    members: bytes

    def bound(self, transcript: bytes, sender: int) -> bytes:
        place = struct.pack(">qqI", self.round, self.serial, sender)
        return b"fedddp secure\0" + self.kind.ljust(8, b"\0") + transcript + place + self.members


def seal(session: Session, place: Place, body: bytes) -> bytes:
    """This party's message."""
    return _sealed(session, place, _USUAL + body)


def seal_refusal(session: Session, place: Place, reason: str) -> bytes:
    """This party's message where it has found what burns the round."""
    return _sealed(session, place, _BURNT + reason.encode()[:REASON_BYTES])


def _sealed(session: Session, place: Place, text: bytes) -> bytes:
    return text + session.identity.sign(place.bound(session.transcript, session.rank) + text)


def unseal(session: Session, place: Place, sender: int, message: bytes) -> bytes:
    """The body of a party's message. Raises Refused, or RefusedElsewhere."""
    if not message:
        raise Refused(f"rank {sender} sent nothing")
    text, signature = message[:-SIGNATURE], message[-SIGNATURE:]
    if not text or not signed_by(session.keys[sender], signature, place.bound(session.transcript, sender) + text):
        raise Refused(f"rank {sender}'s message is not signed by it for this step")
    if text[:1] == _BURNT:
        raise RefusedElsewhere(f"rank {sender} refused: {text[1:].decode(errors='replace')}")
    return text[1:]
