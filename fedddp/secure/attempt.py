"""The one-time keys of one attempt at a round, and all that is made of them (Bonawitz et al. 2017, figure 4).

Party i masks its vector as

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

over its neighbours j. The pairwise masks cancel in the sum; the self masks are taken off with the seeds b_i, which the
others restore from shares. Of a party that is missing from the sum the key behind s_ij is restored instead. Both kinds
together would bare x_i, so a party reveals one kind of each other party, and deletes the other kind as it does.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from . import masks, shamir
from .envelope import Refused, digest_of
from .graph import Graph
from .hello import Session

KEYS_BYTES = 64
SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16
"""Two shares and AES-GCM's tag. The key serves once, so the nonce is zero."""


def shares_bytes(neighbours: int) -> int:
    return 32 + neighbours * SEALED_BYTES


def reveal_bytes(neighbours: int) -> int:
    return (neighbours + 1) * shamir.SHARE_BYTES


class Attempt:
    """One party's part. Methods are called in the order they stand in; bodies are other parties', by rank.

    Every method that reads bodies raises Refused with the reason, naming the rank.
    """

    def __init__(
        self,
        session: Session,
        round: int,
        serial: int,
        graph: Graph,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.serial, self.graph = serial, graph
        self.rank, self.neighbours = session.rank, graph.neighbours[session.rank]
        self._session, self._random = session, random_bytes
        self._context = struct.pack(">qq", round, serial) + digest_of(graph.members)
        self._channel, self._pairwise, self._seed = random_bytes(32), random_bytes(32), random_bytes(32)
        self._channels: dict[int, bytes] = {}
        self._pairs: dict[int, bytes] = {}
        self._points: dict[int, bytes] = {}
        self._seals: dict[int, bytes] = {}
        self._held: dict[int, dict[str, bytes]] = {}  # by owner: my share of its "seed" and of its pairwise "key"
        self._revealed: dict[int, str] = {}

    # -- 1 keys -----------------------------------------------------------------------------------------------

    def keys(self) -> bytes:
        """Two public X25519 keys: for the shares on their way, and for the pairwise masks."""
        return b"".join(
            X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
            for private in (self._channel, self._pairwise)
        )

    def agree(self, bodies: Mapping[int, bytes]) -> None:
        """Agree with each neighbour on a channel and on a mask."""
        seen: dict[bytes, int] = {}
        for rank, body in bodies.items():
            if len(body) != KEYS_BYTES:
                raise Refused(f"rank {rank}'s keys have {len(body)} bytes, not {KEYS_BYTES}")
            for point in (body[:32], body[32:]):
                if point in seen:
                    raise Refused(f"rank {rank} sends a key twice, or that of rank {seen[point]}")
                seen[point] = rank
            self._points[rank] = body[32:]
        channel, pairwise = map(X25519PrivateKey.from_private_bytes, (self._channel, self._pairwise))
        for rank in self.neighbours:
            shared = _exchange(channel, bodies[rank][:32], rank)
            self._channels[rank] = shared + self._session.secrets[rank]
            self._pairs[rank] = self._mask_key(_exchange(pairwise, bodies[rank][32:], rank), self.rank, rank)

    # -- 2 shares ---------------------------------------------------------------------------------------------

    def shares(self) -> bytes:
        """A seal of the seed, then for each neighbour, encrypted to it, shares of the seed and of the pairwise key."""
        points = [holder + 1 for holder in self.graph.holders(self.rank)]
        of_seed, of_key = (
            shamir.split(secret, points, self.graph.threshold, self._random) for secret in (self._seed, self._pairwise)
        )
        self._held[self.rank] = {"seed": of_seed[self.rank + 1], "key": of_key[self.rank + 1]}
        sealed = []
        for rank in self.neighbours:
            cipher, bound = self._cipher(self.rank, rank)
            sealed.append(cipher.encrypt(bytes(12), of_seed[rank + 1] + of_key[rank + 1], bound))
        return self._seal(self.rank, self._seed) + b"".join(sealed)

    def accept(self, bodies: Mapping[int, bytes]) -> None:
        """Keep the shares that the neighbours sent to this party."""
        for rank, body in bodies.items():
            if len(body) != shares_bytes(len(self.graph.neighbours[rank])):
                raise Refused(f"rank {rank}'s shares have {len(body)} bytes")
            self._seals[rank] = body[:32]
        for rank in self.neighbours:
            begin = 32 + self.graph.neighbours[rank].index(self.rank) * SEALED_BYTES
            cipher, bound = self._cipher(rank, self.rank)
            try:
                plain = cipher.decrypt(bytes(12), bodies[rank][begin : begin + SEALED_BYTES], bound)
            except InvalidTag:
                raise Refused(f"rank {rank}'s shares for rank {self.rank} do not decrypt") from None
            self._held[rank] = {"seed": plain[: shamir.SHARE_BYTES], "key": plain[shamir.SHARE_BYTES :]}

    # -- 3 mask -----------------------------------------------------------------------------------------------

    def mask(self, y: Tensor) -> Tensor:
        """Mask ``y`` [L], an int64 or int32 vector, in place."""
        pairs = [(key, 1 if rank > self.rank else -1) for rank, key in self._pairs.items()]
        return masks.add(y, [(self._self_key(self.rank, self._seed), 1), *pairs])

    # -- 5 reveal ---------------------------------------------------------------------------------------------

    def reveal(self, summed: Sequence[int]) -> bytes:
        """For each party whose share is held, ascending: that of its seed if it is in the sum, of its key if not.

        Raises RuntimeError rather than reveal the second kind for one party, or for a sum that this party is not in or
        that is not over members, whatever leads here.
        """
        if not {self.rank} <= set(summed) <= set(self.graph.members):
            raise RuntimeError(f"shares would be revealed for a sum over {list(summed)}")
        told = b""
        for owner in self.graph.holders(self.rank):
            kind, other = ("seed", "key") if owner in summed else ("key", "seed")
            if self._revealed.setdefault(owner, kind) != kind:
                raise RuntimeError(f"both kinds of shares of rank {owner} would be revealed")
            self._held[owner].pop(other, None)
            told += self._held[owner][kind]
        return told

    def unmask(self, total: Tensor, summed: Sequence[int], bodies: Mapping[int, bytes]) -> Tensor:
        """Take the masks off the sum [L] over ``summed``, in place, with the shares that the survivors reveal."""
        shares: dict[int, dict[int, bytes]] = {owner: {} for owner in self.graph.members}
        for rank, body in bodies.items():
            owners = self.graph.holders(rank)
            if len(body) != reveal_bytes(len(owners) - 1):
                raise Refused(f"rank {rank} reveals {len(body)} bytes for {len(owners)} shares")
            for at, owner in enumerate(owners):
                shares[owner][rank + 1] = body[at * shamir.SHARE_BYTES : (at + 1) * shamir.SHARE_BYTES]
        taken = []
        for owner in self.graph.members:
            try:
                secret = shamir.combine(shares[owner], self.graph.threshold)
            except ValueError as error:
                raise Refused(f"the secret of rank {owner} cannot be restored: {error}") from None
            taken += self._masks_by(owner, secret, summed)
        return masks.add(total, taken)

    def _masks_by(self, owner: int, secret: bytes, summed: Sequence[int]) -> list[tuple[bytes, int]]:
        """Minus the self mask of a party in the sum, or minus what the masks of one that is not have left in it."""
        if owner in summed:
            if self._seal(owner, secret) != self._seals[owner]:
                raise Refused(f"the seed restored for rank {owner} is not the one it sealed")
            return [(self._self_key(owner, secret), -1)]
        private = X25519PrivateKey.from_private_bytes(secret)
        if private.public_key().public_bytes_raw() != self._points[owner]:
            raise Refused(f"the key restored for rank {owner} does not belong to its public key")
        return [
            (self._mask_key(_exchange(private, self._points[rank], rank), owner, rank), -1 if owner > rank else 1)
            for rank in self.graph.neighbours[owner]
            if rank in summed
        ]

    # -- keys from secrets ------------------------------------------------------------------------------------

    def _self_key(self, rank: int, seed: bytes) -> bytes:
        return masks.derive(seed, self._session.transcript, b"self mask", self._context + struct.pack(">I", rank))

    def _mask_key(self, shared: bytes, one: int, other: int) -> bytes:
        pair = struct.pack(">II", min(one, other), max(one, other))
        return masks.derive(shared, self._session.transcript, b"pairwise mask", self._context + pair)

    def _cipher(self, sender: int, receiver: int) -> tuple[AESGCM, bytes]:
        """Encryption of what one party sends another, with a key for this direction, and what it is bound to."""
        bound = self._context + struct.pack(">II", sender, receiver)
        secret = self._channels[receiver if sender == self.rank else sender]
        return AESGCM(masks.derive(secret, self._session.transcript, b"share", bound)), bound

    def _seal(self, rank: int, seed: bytes) -> bytes:
        """Binds a party to its seed without telling it."""
        text = b"fedddp seed\0" + self._session.transcript + self._context + struct.pack(">I", rank)
        return hashlib.sha256(text + seed).digest()


def _exchange(private: X25519PrivateKey, point: bytes, rank: int) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        raise Refused(f"rank {rank}'s key is a point of low order") from None


def digest(total: Tensor) -> bytes:
    """SHA-256 of a vector's bytes."""
    return hashlib.sha256(total.view(torch.uint8).numpy().data).digest()
