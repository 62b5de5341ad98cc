"""Who a party is: an Ed25519 key of its own, and the roster that names everybody's public half.

A key is a PEM file (PKCS8) that only its owner may read. The roster is TOML, the same on every party: ranks 0 to n - 1
and their public keys in hexadecimal. Without a roster keys are made at start and nobody is authenticated.

    [parties]
    0 = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ..registry.choice import read_file

MAKE = "fedddp keygen --help says how to make one"


class IdentityError(ValueError):
    """A key or a roster that cannot be used; one line that names the file and what to do."""


class Identity:
    """A private Ed25519 key. ``public`` is its public half, 32 bytes."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def new(cls, random_bytes: Callable[[int], bytes] = os.urandom) -> Self:
        return cls(Ed25519PrivateKey.from_private_bytes(random_bytes(32)))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a PEM file. Raises IdentityError where it is missing, open to others, or no Ed25519 key."""
        path = Path(path)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            pem = read_file(path)
        except OSError as error:
            raise IdentityError(f"{path}: cannot read the key ({error.strerror}); {MAKE}") from None
        if mode & 0o077:
            raise IdentityError(f"{path}: others than its owner can reach the key (mode {mode:04o}); chmod 600 {path}")
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise IdentityError(f"{path}: not an unencrypted private key in PEM; {MAKE}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise IdentityError(f"{path}: not an Ed25519 key; {MAKE}")
        return cls(private)

    def save(self, path: str | Path) -> None:
        """Write a new PEM file with mode 0600. Raises FileExistsError rather than replace one."""
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, message: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._private.sign(message)


def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of a public key signed this message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Roster:
    """The public keys of the parties, by rank; empty for a simulation that authenticates nobody."""

    keys: Mapping[int, bytes]

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"fedddp roster\0" + self.text().encode()).digest()

    def text(self) -> str:
        """As a TOML file has it."""
        return "[parties]\n" + "".join(f'{rank} = "{key.hex()}"\n' for rank, key in sorted(self.keys.items()))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a TOML file. Raises IdentityError where it is missing or malformed."""
        path = Path(path)
        try:
            parties = tomllib.loads(read_file(path).decode("utf-8-sig")).get("parties")
        except OSError as error:
            raise IdentityError(f"{path}: cannot read the roster ({error.strerror}); {MAKE}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise IdentityError(f"{path}: not TOML ({error}); {MAKE}") from None
        if not isinstance(parties, dict) or not parties:
            raise IdentityError(f"{path}: no table [parties] with a public key for each rank; {MAKE}")
        for rank, key in parties.items():
            if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key):
                raise IdentityError(f"{path}: the key of rank {rank} is not 64 hexadecimal digits; copy it again")
        if set(parties) != {str(rank) for rank in range(len(parties))}:
            raise IdentityError(f"{path}: ranks are 0 to {len(parties) - 1} without a gap, not {', '.join(parties)}")
        if len(set(parties.values())) < len(parties):
            raise IdentityError(f"{path}: two ranks have the same key; every party needs one of its own")
        return cls({int(rank): bytes.fromhex(key) for rank, key in parties.items()})
