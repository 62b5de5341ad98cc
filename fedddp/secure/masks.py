"""Masks: key streams of AES-256 in counter mode, added to a vector in the ring of its integers.

    y = x + sum_k sign_k PRG(key_k)  mod 2^64 (int64) or 2^32 (int32)

PRG(key) is AES-256-CTR from counter 0, so a key serves for one vector and never again; `derive` makes such keys with
HKDF-SHA256 from what two parties share, bound to what it is for. A signed integer of torch wraps around exactly.
"""

from collections.abc import Iterable

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

KEY_BYTES = 32
RINGS = (torch.int64, torch.int32)
CHUNK = 2**18
"""Bytes worked on at a time: zeros, key stream and vector stay in a core's cache together."""
_ZEROS = memoryview(bytes(CHUNK))


def derive(secret: bytes, salt: bytes, purpose: bytes, context: bytes) -> bytes:
    """A key of 32 bytes for one purpose in one context."""
    return HKDF(SHA256(), KEY_BYTES, salt, purpose + b"\0" + context).derive(secret)


def add(y: Tensor, masks: Iterable[tuple[bytes, int]]) -> Tensor:
    """Add (sign 1) or subtract (sign -1) the key streams of all ``masks`` to ``y`` [L], in place.

    Raises ValueError for a tensor that is not a contiguous int64 or int32 vector in CPU memory.
    """
    check(y)
    streams = [(Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), sign > 0) for key, sign in masks]
    size = y.element_size()
    stream = torch.empty(CHUNK // size + 16, dtype=y.dtype)  # a block more: the cipher asks for it
    room = stream.numpy().data.cast("B")
    step = CHUNK // size
    for begin in range(0, y.numel(), step):
        part = y[begin : begin + step]
        n = part.numel()
        for cipher, plus in streams:
            cipher.update_into(_ZEROS[: n * size], room)
            part.add_(stream[:n], alpha=1 if plus else -1)
    return y


def check(x: Tensor) -> None:
    """Raise ValueError unless masks can be added to ``x``."""
    if x.dtype not in RINGS or x.device.type != "cpu" or x.dim() != 1 or not x.is_contiguous():
        told = f"{x.dtype}, {x.device.type}, {x.dim()} dimension(s)"
        raise ValueError(f"masks are added to a contiguous int64 or int32 vector in CPU memory, not to {told}")
