"""Refuse messages that the configured protocol does not contain, by purpose, operation, element type and size.

A guard stops mistakes: code that sends a raw update beside the masked sum is refused before anything is sent. It is
no defence against a rank whose owner rewrites the program, and it checks types and sizes, not contents: that the int64
vector of an "aggregate" is masked follows from the secure protocol and the tests on the network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NoReturn, Self

from .gloo import MODULES
from .heartbeat import CommError
from .ledger import Purpose

REAL = ("float32", "float64", "bfloat16", "float16")
RING = ("int64", "int32")
PACKED = ("uint8", "int8", "int16")
SECURE = tuple(purpose for purpose in Purpose if purpose.startswith("secure "))


class MessageRefused(CommError):
    """A message that the configured protocol does not contain; nothing of it was sent."""


@dataclass(frozen=True)
class AllowedMessage:
    """One kind of message that may be sent.

    Args:
        op: the collective, or "store".
        dtypes: element types.
        max_bytes: of the tensor (not of what a ring sends for it); None for no limit.
    """

    op: str
    dtypes: tuple[str, ...]
    max_bytes: int | None = None

    def __str__(self) -> str:
        limit = "" if self.max_bytes is None else f" up to {self.max_bytes} bytes"
        return f"{self.op} of {' or '.join(self.dtypes)}{limit}"

    def allows(self, op: str, dtype: str, bytes: int) -> bool:
        """Whether a message is of this kind."""
        return op == self.op and dtype in self.dtypes and (self.max_bytes is None or bytes <= self.max_bytes)


_IN_THE_CLEAR = (
    AllowedMessage("all_reduce", (*REAL[:2], *RING, "int8")),
    *(AllowedMessage(op, REAL + RING + PACKED) for op in ("all_to_all", "all_gather")),
)


@dataclass(frozen=True)
class Guard:
    """The messages that may be sent, by purpose."""

    allowed: Mapping[str, tuple[AllowedMessage, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        secure: bool = False,
        ring: str = "int64",
        evaluated: int = 2 + 100**2,
        clients: int = 1,
        losses: bool = False,
        mean_of: int = 0,
        secret_bytes: int = 1 << 20,
    ) -> Self:
        """The program's protocol.

        Args:
            secure: updates are masked. An "aggregate" is then of type ``ring`` and of no other, and the messages of the
                secure protocol are allowed, of ``secret_bytes`` each at most.
            evaluated: how many sums an evaluation has.
            clients: a privacy budget has a count for each of them, and the evaluation of personal models two figures
                for each of 1000 at most (none where updates are masked).
            losses: cohorts are chosen by the clients' losses, 8 bytes each.
            mean_of: length of the model whose mean over all clients is evaluated; 0 where it is not.
        """

        def reduced(*dtypes: str, limit: int | None = None) -> tuple[AllowedMessage, ...]:
            return (AllowedMessage("all_reduce", dtypes, limit),)

        allowed: dict[str, tuple[AllowedMessage, ...]] = {
            Purpose.DISTRIBUTE: (AllowedMessage("broadcast", REAL),),
            Purpose.RESUME: (AllowedMessage("broadcast", REAL), AllowedMessage("broadcast", ("int64",), 64)),
            Purpose.PRIVACY: (
                AllowedMessage("broadcast", ("int64", "float64"), 8 * clients),
                AllowedMessage("broadcast", ("uint8",), 32),
                *reduced("float32", limit=4),
            ),
            Purpose.RUN_FOLDER: (
                AllowedMessage("broadcast", ("int64",), 8),
                AllowedMessage("broadcast", ("uint8",), 1 << 14),
            ),
            Purpose.EVALUATE: reduced("float64", limit=8 * evaluated),
            Purpose.AGGREGATE: reduced(ring) if secure else _IN_THE_CLEAR,
            **dict.fromkeys((Purpose.TARGET_ACCURACY, Purpose.DONE, Purpose.CLOSE), reduced("float32", limit=4)),
            **dict.fromkeys((Purpose.PROGRESS, Purpose.GPU), (AllowedMessage("store", ("bytes",), 1 << 10),)),
            **dict.fromkeys((Purpose.SIGNATURE, Purpose.REGROUP), (AllowedMessage("store", ("bytes",), 1 << 16),)),
        }
        if secure:
            allowed |= dict.fromkeys(SECURE, reduced("uint8", limit=secret_bytes))
        else:
            allowed[Purpose.EVALUATE_CLIENTS] = reduced("float64", limit=16 * min(clients, 1000))
        if losses:
            allowed[Purpose.COHORT] = reduced("float64", limit=8 * clients)
        if mean_of:
            allowed[Purpose.CLIENTS_MEAN] = reduced("float64", limit=8 * (mean_of + 1))
        return cls(allowed)

    def check(self, op: str, dtype: str, shape: tuple[int, ...], bytes: int, purpose: str) -> None:
        """Raise `MessageRefused`, with the kinds that are allowed, if the message is of none of these."""
        kinds = self.allowed.get(purpose, ())
        if any(kind.allows(op, dtype, bytes) for kind in kinds):
            return
        allowed = " or ".join(map(str, kinds)) or f"nothing: known purposes are {', '.join(sorted(self.allowed))}"
        raise MessageRefused(
            f"privacy.guard refuses {op} of {dtype} {list(shape)} ({bytes} bytes) for {str(purpose)!r}; "
            f"allowed: {allowed}"
        )


# -- around Comm --------------------------------------------------------------------------------------------------

OBJECTS = (
    *("all_gather_object", "gather_object", "broadcast_object_list"),
    *("scatter_object_list", "send_object_list", "recv_object_list"),
)
"""Functions of torch.distributed that unpickle a peer's message, and so may run its code."""
AROUND = (
    *("init_process_group", "new_group", "all_reduce", "broadcast", "reduce", "send", "recv", "isend", "irecv"),
    *("all_gather", "all_gather_into_tensor", "gather", "scatter", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_to_all", "all_to_all_single", "batch_isend_irecv", "barrier", "all_reduce_coalesced"),
)
"""Functions of torch.distributed that would send without Comm's knowledge."""
_asked: dict[int, tuple[str, ...]] = {}
_originals: dict[tuple[ModuleType, str], Any] = {}


def refuse_around(owner: object, names: tuple[str, ...]) -> None:
    """Make the functions ``names`` of torch.distributed raise `MessageRefused` in this process, for ``owner``.

    This replaces the owner's earlier request; () ends it. A function that no owner refuses is as it was before.
    """
    _asked[id(owner)] = names
    refused = {name for names in _asked.values() for name in names}
    for module, name in [key for key in _originals if key[1] not in refused]:
        setattr(module, name, _originals.pop((module, name)))
    for module in MODULES:
        for name in refused:
            if (module, name) not in _originals and hasattr(module, name):
                _originals[module, name] = getattr(module, name)
                setattr(module, name, _refusing(name))
    if not names:
        del _asked[id(owner)]


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        why = "it unpickles what a peer sends" if name in OBJECTS else "privacy.guard is on"
        raise MessageRefused(f"torch.distributed.{name} is refused: {why}; ranks talk through fedddp.comm.Comm only")

    return refuse
