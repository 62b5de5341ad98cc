"""The start of a session: who takes part, under which keys, in which configuration.

Each party sends one signed hello:

    magic, version, rank, world size, nonce (32 random bytes), digest of the configuration, digest of the roster,
    public Ed25519 key, public X25519 key of this session, signature (Ed25519 over all before it)

and checks everybody's. The transcript, SHA-256 over all hellos in the order of ranks, stands for the session: every
party confirms it under its signature, which also unmasks a replayed hello, and every later message is signed together
with it. With a roster the key of a rank must be the roster's. Without one it is taken from the hello, and nobody is
authenticated.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from .identity import Identity, Roster, signed_by

MAGIC = b"fedddp/1"
VERSION = 1
LEAST_PARTIES = 3
SIGNATURE = 64
_FIELDS = struct.Struct(">8sHHH32s32s32s32s32s")
HELLO_SIZE = _FIELDS.size + SIGNATURE


class HelloError(ValueError):
    """A session that must not start; says which party's hello is refused and why."""


@dataclass(frozen=True)
class Session:
    """What a party knows once everybody's hello is checked. ``secrets``: shared with one other party each."""

    rank: int
    world_size: int
    identity: Identity = field(repr=False)
    keys: Mapping[int, bytes]
    transcript: bytes
    secrets: Mapping[int, bytes] = field(repr=False)
    authenticated: bool

    def sign(self, statement: bytes) -> bytes:
        """A signature of what this party writes to the store in this session."""
        return self.identity.sign(b"fedddp store\0" + self.transcript + statement)

    def signed(self, rank: int, statement: bytes, signature: bytes) -> bool:
        """Whether a party signed such a statement."""
        return rank in self.keys and signed_by(
            self.keys[rank], signature, b"fedddp store\0" + self.transcript + statement
        )

    def confirmation(self) -> bytes:
        """The signature under the transcript that the others ask for."""
        return self.identity.sign(b"fedddp confirm\0" + self.transcript + struct.pack(">H", self.rank))

    def check_confirmations(self, signatures: Sequence[bytes]) -> None:
        """Raise HelloError unless every party has signed the same transcript."""
        for rank, signature in enumerate(signatures):
            if not signed_by(
                self.keys[rank], signature, b"fedddp confirm\0" + self.transcript + struct.pack(">H", rank)
            ):
                raise HelloError(f"rank {rank} does not confirm the transcript: it saw other hellos, or replays one")


class Greeting:
    """This party's hello, and its judgement of the others'.

    ``configuration``: bytes that must be equal on all parties, of any length. Raises HelloError where this party itself
    does not fit: fewer than 3 parties, or a key that the roster does not know.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        identity: Identity,
        roster: Roster | None,
        configuration: bytes,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.rank, self.world_size, self._identity, self._roster = rank, world_size, identity, roster
        if world_size < LEAST_PARTIES:
            raise HelloError(
                f"secure aggregation needs at least {LEAST_PARTIES} ranks, not {world_size}: "
                "of two, each learns the other's update from the sum"
            )
        if roster is not None and len(roster.keys) != world_size:
            raise HelloError(f"the roster names {len(roster.keys)} parties, but {world_size} ranks run")
        if roster is not None and roster.keys[rank] != identity.public:
            raise HelloError(
                f"the key of this rank is not the roster's for rank {rank}; give the key that belongs to it"
            )
        self._configuration = hashlib.sha256(configuration).digest()
        self._rosters = roster.digest if roster else bytes(32)
        self._agreement = X25519PrivateKey.from_private_bytes(random_bytes(32))
        public = self._agreement.public_key().public_bytes_raw()
        body = _FIELDS.pack(
            MAGIC,
            VERSION,
            rank,
            world_size,
            random_bytes(32),
            self._configuration,
            self._rosters,
            identity.public,
            public,
        )
        self.message = body + identity.sign(b"fedddp hello\0" + body)

    def meet(self, hellos: Sequence[bytes]) -> Session:
        """The session, from every rank's hello in the order of ranks. Raises HelloError naming one and the reason."""
        keys: dict[int, bytes] = {}
        points: dict[int, bytes] = {}
        nonces: dict[int, bytes] = {}
        for rank, hello in enumerate(hellos):
            keys[rank], points[rank], nonces[rank] = self._judge(rank, hello)
        for named, values in (("key", keys), ("session key", points), ("nonce", nonces)):
            first: dict[bytes, int] = {}
            for rank, value in values.items():
                if value in first:
                    raise HelloError(f"rank {rank} has the same {named} as rank {first[value]}")
                first[value] = rank
        secrets = {rank: self._agree(rank, point) for rank, point in points.items() if rank != self.rank}
        if hellos[self.rank] != self.message:
            raise HelloError(f"the hello of this rank ({self.rank}) came back altered")
        transcript = hashlib.sha256(b"fedddp transcript\0" + b"".join(hellos)).digest()
        return Session(
            self.rank,
            self.world_size,
            self._identity,
            keys,
            transcript,
            secrets,
            authenticated=self._roster is not None,
        )

    def _judge(self, rank: int, hello: bytes) -> tuple[bytes, bytes, bytes]:
        """The public key, session key and nonce of a hello that may be believed."""
        if not hello:
            raise HelloError(f"rank {rank} sent no hello")
        if len(hello) != HELLO_SIZE or not hello.startswith(MAGIC):
            raise HelloError(f"rank {rank} sent something else than a hello")
        body, signature = hello[:-SIGNATURE], hello[-SIGNATURE:]
        _, version, stated, world_size, nonce, configuration, roster, key, point = _FIELDS.unpack(body)
        if version != VERSION:
            raise HelloError(f"rank {rank} speaks version {version} of the protocol, this rank version {VERSION}")
        if self._roster is not None and key != self._roster.keys[rank]:
            raise HelloError(f"rank {rank} has a key that the roster does not name for it")
        if not signed_by(key, signature, b"fedddp hello\0" + body):
            raise HelloError(f"rank {rank}'s hello is forged: the signature is not of its key")
        if stated != rank:
            raise HelloError(f"rank {stated} says hello twice: the second time in the place of rank {rank}")
        if world_size != self.world_size:
            raise HelloError(f"rank {rank} counts {world_size} ranks, this rank {self.world_size}")
        if configuration != self._configuration:
            raise HelloError(f"rank {rank} runs another configuration")
        if roster != self._rosters:
            raise HelloError(f"rank {rank} has another roster")
        return key, point, nonce

    def _agree(self, rank: int, point: bytes) -> bytes:
        try:
            return self._agreement.exchange(X25519PublicKey.from_public_bytes(point))
        except ValueError:
            raise HelloError(f"rank {rank}'s session key is a point of low order") from None
