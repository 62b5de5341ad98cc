"""The one-time keys of one attempt at a round, and all that is made of them (Bonawitz et al. 2017, figure 4).

Party i masks its vector as

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

over its neighbours j. The pairwise masks cancel in the sum over all members; the self masks are taken off with the
seeds b_i, which the others restore from shares, also of a party that was lost after the sum. The keys behind s_ij are
never shared: a sum without one of the members is not made, the others begin a new attempt (reveal.py).
"""

import hashlib
import os
import struct
from collections.abc import Callable, Mapping

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from . import masks, shamir
from .envelope import STATE_BYTES, Refused, RoundPlace
from .graph import Graph
from .hello import Session
from .reveal import Certificate

KEYS_BYTES = STATE_BYTES + 64
COUNT_BYTES = 8
SEALED_BYTES = shamir.SHARE_BYTES + 16
"""A share and AES-GCM's tag. The key serves once, so the nonce is zero."""


class OtherModel(RuntimeError):
    """Ranks start a round from different models; nothing masked has been sent."""


def shares_bytes(neighbours: int) -> int:
    return 32 + COUNT_BYTES + neighbours * SEALED_BYTES


def reveal_bytes(neighbours: int) -> int:
    return (neighbours + 1) * shamir.SHARE_BYTES


class Attempt:
    """One party's part. Methods are called in the order they stand in; bodies are other parties', by rank.

    Every method that reads bodies raises Refused with the reason, naming the rank.
    """

    def __init__(
        self,
        session: Session,
        place: RoundPlace,
        graph: Graph,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.place, self.graph = place, graph
        self._session, self._random = session, random_bytes
        self._channel, self._pairwise, self._seed = random_bytes(32), random_bytes(32), random_bytes(32)
        self._channels: dict[int, bytes] = {}
        self._pairs: dict[int, bytes] = {}
        self._seals: dict[int, bytes] = {}
        self._held: dict[int, bytes] = {}
        """My share of each one's seed, by owner."""
        self.contributors = 0
        """How many clients of all members contribute, once everybody's shares are accepted."""

    @property
    def rank(self) -> int:
        return self._session.rank

    @property
    def neighbours(self) -> tuple[int, ...]:
        return self.graph.neighbours[self.rank]

    # -- 1 keys -----------------------------------------------------------------------------------------------

    def keys(self) -> bytes:
        """The model's digest, and two public X25519 keys: for the shares on their way, for the pairwise masks."""
        return self.place.state + b"".join(
            X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
            for private in (self._channel, self._pairwise)
        )

    def agree(self, bodies: Mapping[int, bytes]) -> None:
        """Agree with each neighbour on a channel and on a mask. Raises OtherModel too."""
        seen: dict[bytes, int] = {}
        for rank, body in bodies.items():
            if len(body) != KEYS_BYTES:
                raise Refused(f"rank {rank}'s keys have {len(body)} bytes, not {KEYS_BYTES}")
            for point in (body[-64:-32], body[-32:]):
                if point in seen:
                    raise Refused(f"rank {rank} sends a key twice, or that of rank {seen[point]}")
                seen[point] = rank
        first = min(bodies)
        odd = [rank for rank, body in bodies.items() if body[:STATE_BYTES] != bodies[first][:STATE_BYTES]]
        if odd:
            raise OtherModel(f"the model on rank(s) {odd} is not the one on rank {first}")
        channel, pairwise = map(X25519PrivateKey.from_private_bytes, (self._channel, self._pairwise))
        for rank in self.neighbours:
            shared = _exchange(channel, bodies[rank][-64:-32], rank)
            self._channels[rank] = shared + self._session.secrets[rank]
            self._pairs[rank] = self._mask_key(_exchange(pairwise, bodies[rank][-32:], rank), self.rank, rank)

    # -- 2 shares ---------------------------------------------------------------------------------------------

    def shares(self, contributors: int = 0) -> bytes:
        """A seal of the seed, a masked count, then for each neighbour, encrypted to it, a share of the seed.

        ``contributors``: how many clients this party's vector is of. The masks of the counts cancel over all members.
        """
        points = [holder + 1 for holder in self.graph.holders(self.rank)]
        shares = shamir.split(self._seed, points, self.graph.threshold, self._random)
        self._held[self.rank] = shares[self.rank + 1]
        sealed = []
        for rank in self.neighbours:
            cipher, bound = self._cipher(self.rank, rank)
            sealed.append(cipher.encrypt(bytes(12), shares[rank + 1], bound))
        count = sum(self._count_mask(rank) for rank in self.neighbours) + contributors
        return self._seal(self.rank, self._seed) + (count % 2**64).to_bytes(COUNT_BYTES, "big") + b"".join(sealed)

    def accept(self, bodies: Mapping[int, bytes]) -> None:
        """Keep the shares that the neighbours sent to this party, and add up the counts."""
        for rank, body in bodies.items():
            if len(body) != shares_bytes(len(self.graph.neighbours[rank])):
                raise Refused(f"rank {rank}'s shares have {len(body)} bytes")
            self._seals[rank] = body[:32]
            self.contributors += int.from_bytes(body[32 : 32 + COUNT_BYTES], "big")
        self.contributors %= 2**64
        for rank in self.neighbours:
            begin = 32 + COUNT_BYTES + self.graph.neighbours[rank].index(self.rank) * SEALED_BYTES
            cipher, bound = self._cipher(rank, self.rank)
            try:
                self._held[rank] = cipher.decrypt(bytes(12), bodies[rank][begin : begin + SEALED_BYTES], bound)
            except InvalidTag:
                raise Refused(f"rank {rank}'s shares for rank {self.rank} do not decrypt") from None

    # -- 3 mask -----------------------------------------------------------------------------------------------

    def mask(self, y: Tensor) -> Tensor:
        """Mask ``y`` [L], an int64 or int32 vector, in place."""
        pairs = [(key, 1 if rank > self.rank else -1) for rank, key in self._pairs.items()]
        return masks.add(y, [(self._self_key(self.rank, self._seed), 1), *pairs])

    # -- 5 reveal ---------------------------------------------------------------------------------------------

    def reveal(self, certificate: Certificate) -> bytes:
        """The shares that this party holds, of all members' seeds or of its neighbours', in the order of their owners.

        Raises RuntimeError for the certificate of another attempt, whatever leads here.
        """
        if certificate.place != self.place:
            raise RuntimeError(f"shares of {self.place} would be revealed for {certificate.place}")
        return b"".join(self._held[owner] for owner in self.graph.holders(self.rank))

    def unmask(self, total: Tensor, bodies: Mapping[int, bytes]) -> Tensor:
        """Take the self masks off the sum [L], in place, with the shares that the survivors reveal."""
        shares: dict[int, dict[int, bytes]] = {owner: {} for owner in self.graph.members}
        for rank, body in bodies.items():
            owners = self.graph.holders(rank)
            if len(body) != reveal_bytes(len(owners) - 1):
                raise Refused(f"rank {rank} reveals {len(body)} bytes for {len(owners)} shares")
            for at, owner in enumerate(owners):
                shares[owner][rank + 1] = body[at * shamir.SHARE_BYTES : (at + 1) * shamir.SHARE_BYTES]
        return masks.add(total, [(self._restored(owner, found), -1) for owner, found in shares.items()])

    def _restored(self, owner: int, shares: Mapping[int, bytes]) -> bytes:
        """The key of a party's self mask."""
        try:
            seed = shamir.combine(shares, self.graph.threshold)
        except ValueError as error:
            raise Refused(f"the seed of rank {owner} cannot be restored: {error}") from None
        if self._seal(owner, seed) != self._seals[owner]:
            raise Refused(f"the seed restored for rank {owner} is not the one it sealed")
        return self._self_key(owner, seed)

    # -- keys from secrets ------------------------------------------------------------------------------------

    def _self_key(self, rank: int, seed: bytes) -> bytes:
        return masks.derive(seed, self._session.transcript, b"self mask", self.place.context + struct.pack(">I", rank))

    def _mask_key(self, shared: bytes, one: int, other: int) -> bytes:
        pair = struct.pack(">II", min(one, other), max(one, other))
        return masks.derive(shared, self._session.transcript, b"pairwise mask", self.place.context + pair)

    def _count_mask(self, rank: int) -> int:
        """What this party adds to its count for a neighbour, who adds the negative. The key is never shared."""
        pair = struct.pack(">II", min(self.rank, rank), max(self.rank, rank))
        key = masks.derive(self._channels[rank], self._session.transcript, b"count", self.place.context + pair)
        return int.from_bytes(key[:COUNT_BYTES], "big") * (1 if rank > self.rank else -1)

    def _cipher(self, sender: int, receiver: int) -> tuple[AESGCM, bytes]:
        """Encryption of what one party sends another, with a key for this direction, and what it is bound to."""
        bound = self.place.context + struct.pack(">II", sender, receiver)
        secret = self._channels[receiver if sender == self.rank else sender]
        return AESGCM(masks.derive(secret, self._session.transcript, b"share", bound)), bound

    def _seal(self, rank: int, seed: bytes) -> bytes:
        """Binds a party to its seed without telling it."""
        text = b"fedddp seed\0" + self._session.transcript + self.place.context + struct.pack(">I", rank)
        return hashlib.sha256(text + seed).digest()


def _exchange(private: X25519PrivateKey, point: bytes, rank: int) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        raise Refused(f"rank {rank}'s key is a point of low order") from None


def digest(total: Tensor) -> bytes:
    """SHA-256 of a vector's bytes."""
    return hashlib.sha256(total.view(torch.uint8).numpy().data).digest()
