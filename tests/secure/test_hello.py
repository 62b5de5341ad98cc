"""fedddp.secure.hello: who may take part. Each hello that is not right is refused with its own reason."""

import hashlib
import itertools

import pytest

from fedddp.secure import Greeting, HelloError, Identity, Roster
from fedddp.secure.hello import _FIELDS, MAGIC, SIGNATURE, VERSION

N = 4
IDENTITIES = [Identity.new(lambda n, rank=rank: bytes([rank + 1]) * n) for rank in range(N)]
ROSTER = Roster({rank: identity.public for rank, identity in enumerate(IDENTITIES)})
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    (2**255 - 20).to_bytes(32, "little"),
]


def stream(*path):
    """Bytes that a test can repeat."""
    count = itertools.count()
    return lambda n: hashlib.shake_256(repr((path, next(count))).encode()).digest(n)


def greeting(rank, roster=ROSTER, configuration=b"config", n=N, identity=None, run=0):
    return Greeting(rank, n, identity or IDENTITIES[rank], roster, configuration, stream("hello", rank, run))


def altered(sender, by=None, **fields):
    """Rank ``sender``'s hello with other contents, rightly signed by ``by``."""
    names = ("magic", "version", "rank", "world_size", "nonce", "configuration", "roster", "key", "point")
    contents = dict(zip(names, _FIELDS.unpack(greeting(sender).message[:-SIGNATURE]), strict=True)) | fields
    body = _FIELDS.pack(*contents.values())
    return body + (by or IDENTITIES[sender]).sign(b"fedddp hello\0" + body)


def meet(hello=None, at=1, roster=ROSTER):
    greetings = [greeting(rank, roster) for rank in range(N)]
    hellos = [g.message for g in greetings]
    if hello is not None:
        hellos[at] = hello
    return [g.meet(hellos) for g in greetings if hello is None or g.rank != at]


def test_all_parties_agree_on_the_session():
    sessions = meet()
    assert len({session.transcript for session in sessions}) == 1
    assert all(session.authenticated for session in sessions)
    for session in sessions:
        session.check_confirmations([s.confirmation() for s in sessions])
        for other in session.secrets:
            assert session.secrets[other] == sessions[other].secrets[session.rank]
    assert len({secret for session in sessions for secret in session.secrets.values()}) == N * (N - 1) / 2
    assert not any(session.authenticated for session in meet(roster=None))


def test_a_session_does_not_show_its_secrets_when_printed():
    session = meet()[0]
    assert all(
        secret.hex() not in repr(session) and repr(secret) not in repr(session) for secret in session.secrets.values()
    )


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (b"", "rank 1 sent no hello"),
        (b"GET / HTTP/1.1", "rank 1 sent something else than a hello"),
        (greeting(1).message[:-1] + b"\0", "rank 1's hello is forged"),
        (greeting(1).message.replace(MAGIC, b"fedddp/2"), "something else than a hello"),
        (altered(1, by=Identity.new()), "rank 1's hello is forged"),
        (greeting(1, None, identity=Identity.new()).message, "a key that the roster does not name"),
        (altered(1, version=VERSION + 1), "rank 1 speaks version 2"),
        (altered(1, rank=0), "rank 0 says hello twice"),
        (altered(1, world_size=5), "rank 1 counts 5 ranks, this rank 4"),
        (altered(1, configuration=bytes(32)), "rank 1 runs another configuration"),
        (altered(1, roster=bytes(32)), "rank 1 has another roster"),
        (altered(1, nonce=_FIELDS.unpack(greeting(0).message[:-SIGNATURE])[4]), "rank 1 has the same nonce as rank 0"),
        (altered(1, point=_FIELDS.unpack(greeting(0).message[:-SIGNATURE])[8]), "the same session key as rank 0"),
        *((altered(1, point=point), "rank 1's session key is a point of low order") for point in LOW_ORDER),
    ],
)
def test_a_hello_that_is_not_right_is_refused_with_its_reason(hello, reason):
    for rank in (0, 2, 3):
        hellos = [greeting(r).message for r in range(N)]
        hellos[1] = hello
        with pytest.raises(HelloError, match=reason):
            greeting(rank).meet(hellos)


def test_without_a_roster_a_stranger_poses_as_a_rank():
    """The control, and what docs say of runs without one: nobody knows whose key rank 1's is."""
    sessions = meet(greeting(1, None, identity=Identity.new()).message, roster=None)
    assert len({session.transcript for session in sessions}) == 1


def test_two_parties_under_one_key_are_refused_without_a_roster():
    both = [greeting(rank, None, identity=IDENTITIES[min(rank, 2)]) for rank in range(N)]
    with pytest.raises(HelloError, match="rank 3 has the same key as rank 2"):
        both[0].meet([g.message for g in both])


def test_the_own_hello_must_come_back_as_it_was():
    with pytest.raises(HelloError, match="came back altered"):
        greeting(1).meet([g.message for g in (greeting(0), greeting(1, run=1), greeting(2), greeting(3))])


@pytest.mark.parametrize("n", [1, 2])
def test_two_parties_are_too_few(n):
    with pytest.raises(HelloError, match=f"at least 3 ranks, not {n}"):
        greeting(0, None, n=n)


def test_a_key_or_roster_that_does_not_fit_this_rank_is_refused_before_anything_is_sent():
    with pytest.raises(HelloError, match="not the roster's for rank 1"):
        greeting(1, identity=IDENTITIES[2])
    with pytest.raises(HelloError, match="names 4 parties, but 5 ranks"):
        greeting(1, n=5)


def test_who_replays_a_hello_cannot_confirm_the_transcript():
    """Rank 1's hello of another session is rightly signed; only its owner could confirm what follows."""
    hellos = [greeting(rank, run=7 if rank == 1 else 0).message for rank in range(N)]
    sessions = {rank: greeting(rank).meet(hellos) for rank in (0, 2, 3)}
    old = greeting(1, run=7).meet([greeting(rank, run=7).message for rank in range(N)])
    confirmations = [old.confirmation() if rank == 1 else sessions[rank].confirmation() for rank in range(N)]
    for session in sessions.values():
        with pytest.raises(HelloError, match="rank 1 does not confirm the transcript"):
            session.check_confirmations(confirmations)
    swapped = [sessions[0].confirmation(), sessions[0].confirmation()]
    with pytest.raises(HelloError, match="rank 1 does not confirm"):
        sessions[0].check_confirmations(swapped)
