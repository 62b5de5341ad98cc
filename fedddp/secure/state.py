"""SHA-256 of the model that a round starts from, which is part of the context of the round's signatures and keys.

Ranks with different models share no masks: a victim that starts from another model than the rest could be read out of
the sum (Pasquini, Francati and Ateniese 2022, "Eluding secure aggregation in federated learning via model
inconsistency").
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import torch

from ..types import ServerState

STATE_BYTES = 32
NO_STATE = bytes(STATE_BYTES)


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
