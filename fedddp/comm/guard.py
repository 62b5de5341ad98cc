"""The allow-list of what may leave a rank: purpose, operation, element type and size.

A guard stops mistakes: a line that sends a raw update beside the masked sum is refused before anything is sent. It is
no defence against a rank whose owner rewrites the program, and it reads types and sizes, not contents: that the int64
vector of an "aggregate" is really masked is what the secure protocol and the tests on the wire are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NoReturn

from .heartbeat import CommError

__all__ = ["AROUND", "OBJECTS", "Guard", "Refused", "Rule", "refuse_around", "restore"]

REAL = ("float32", "float64", "bfloat16", "float16")
RING = ("int64", "int32")
PACKED = ("uint8", "int8", "int16")
SECURE = ("hello", "keys", "shares", "commit", "reveal", "status")


class Refused(CommError):
    """A message that the configured protocol does not contain; nothing of it was sent."""


@dataclass(frozen=True)
class Rule:
    """One kind of message that may be sent."""

    op: str
    dtypes: tuple[str, ...]
    max_bytes: int | None = None
    """Of the tensor (not of what a ring makes of it); no limit by default."""

    def __str__(self) -> str:
        limit = "" if self.max_bytes is None else f" up to {self.max_bytes} bytes"
        return f"{self.op} of {' or '.join(self.dtypes)}{limit}"

    def allows(self, op: str, dtype: str, bytes: int) -> bool:
        return op == self.op and dtype in self.dtypes and (self.max_bytes is None or bytes <= self.max_bytes)


_IN_THE_CLEAR = (
    Rule("all_reduce", (*REAL[:2], *RING, "int8")),
    *(Rule(op, REAL + RING + PACKED) for op in ("all_to_all", "all_gather")),
)


@dataclass(frozen=True)
class Guard:
    """What may be sent, by purpose."""

    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        secure: bool = False,
        ring: str = "int64",
        classes: int = 100,
        clients: int = 1,
        secret_bytes: int = 1 << 20,
    ) -> Guard:
        """The program's protocol.

        ``secure``: updates are masked; an "aggregate" is then of the ring's type and of no other, and the messages of
        the secure protocol are allowed, of ``secret_bytes`` each at most. ``classes``: the evaluation's confusion
        matrix has their number squared of cells. ``clients``: a privacy budget has a count for each of them, and
        the evaluation of personal models two figures for each of 1000 at most (none where updates are masked).
        """
        rules = {
            "distribute the model": (Rule("broadcast", REAL),),
            "resume": (Rule("broadcast", REAL), Rule("broadcast", ("int64",), 64)),
            "privacy": (Rule("broadcast", ("int64", "float64"), 8 * clients), Rule("broadcast", ("uint8",), 32)),
            "run folder": (Rule("broadcast", ("int64",), 8), Rule("broadcast", ("uint8",), 1 << 14)),
            "evaluate": (Rule("all_reduce", ("float64",), 8 * (classes**2 + 2)),),
            **({} if secure else {"evaluate clients": (Rule("all_reduce", ("float64",), 16 * min(clients, 1000)),)}),
            "aggregate": (Rule("all_reduce", (ring,)),) if secure else _IN_THE_CLEAR,
            **{purpose: (Rule("all_reduce", ("float32",), 4),) for purpose in ("target accuracy", "done", "close")},
            **{purpose: (Rule("store", ("bytes",), 1 << 10),) for purpose in ("progress", "gpu", "regroup")},
            "signature": (Rule("store", ("bytes",), 1 << 16),),
        }
        if secure:
            rules |= {f"secure {step}": (Rule("all_reduce", ("uint8",), secret_bytes),) for step in SECURE}
        return cls(rules)

    def with_(self, purpose: str, *rules: Rule) -> Guard:
        """The same guard with these rules for ``purpose``."""
        return Guard({**self.rules, purpose: rules})

    def check(self, op: str, dtype: str, shape: tuple[int, ...], bytes: int, purpose: str) -> None:
        """Raise `Refused`, saying what would be allowed, if no rule covers the message."""
        rules = self.rules.get(purpose, ())
        if any(rule.allows(op, dtype, bytes) for rule in rules):
            return
        allowed = " or ".join(map(str, rules)) or f"nothing: known purposes are {', '.join(sorted(self.rules))}"
        raise Refused(
            f"privacy.guard refuses {op} of {dtype} {list(shape)} ({bytes} bytes) for {purpose!r}; allowed: {allowed}"
        )


# -- around Comm --------------------------------------------------------------------------------------------------

OBJECTS = (
    *("all_gather_object", "gather_object", "broadcast_object_list"),
    *("scatter_object_list", "send_object_list", "recv_object_list"),
)
"""Functions of torch.distributed that unpickle what a peer sends, which is to run its code."""
AROUND = (
    *("init_process_group", "new_group", "all_reduce", "broadcast", "reduce", "send", "recv", "isend", "irecv"),
    *("all_gather", "all_gather_into_tensor", "gather", "scatter", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_to_all", "all_to_all_single", "batch_isend_irecv", "barrier", "all_reduce_coalesced"),
)
"""Functions of torch.distributed that would send beside Comm."""
_before: dict[tuple[ModuleType, str], Any] = {}


def refuse_around(modules: tuple[ModuleType, ...], names: tuple[str, ...]) -> None:
    """Let these functions of the modules raise `Refused`, in the whole process, until `restore`."""
    for module in modules:
        for name in names:
            if (module, name) not in _before and hasattr(module, name):
                _before[module, name] = getattr(module, name)
                setattr(module, name, _refusing(name))


def restore(names: tuple[str, ...] = OBJECTS + AROUND) -> None:
    """Undo `refuse_around`."""
    for module, name in list(_before):
        if name in names:
            setattr(module, name, _before.pop((module, name)))


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        why = "it unpickles what a peer sends" if name in OBJECTS else "privacy.guard is on"
        raise Refused(f"torch.distributed.{name} is refused: {why}; ranks talk through fedddp.comm.Comm only")

    return refuse
