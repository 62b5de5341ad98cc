"""A check: a condition on a run with its keys, code, reason and remedy; and the error that it raises."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...config import ResolvedConfig, flatten, to_dict
from ...config.plain import shortened
from ...errors import UsageError
from ..levels import Plain, level_for

T = TypeVar("T")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Check(Generic[T]):
    """A combination of settings that cannot run.

    Args:
        code: a short name that stays the same when the wording changes.
        keys: the configuration keys involved; the message begins with the first one and its value.
        applies: the condition on a ``T``. It returns False or None where all is well, else True or the values of the
            placeholders in ``reason`` and ``remedy``.
        reason: what is wrong.
        remedy: what to do; empty where ``reason`` ends with it.
    """

    code: str
    keys: tuple[str, ...]
    applies: Callable[[T], Values | bool | None]
    reason: str
    remedy: str = ""

    def error(self, subject: T, config: ResolvedConfig) -> UsageError | None:
        """Return the error if the check applies to ``subject``, else None."""
        found = self.applies(subject)
        if found is None or found is False:
            return None
        values = {} if found is True else found
        key, given = self.keys[0], flatten(to_dict(config))
        front = f"{key}={_shown(given[key])}" if key in given else key
        text = "; ".join(part.format_map(values) for part in (self.reason, self.remedy) if part)
        return UsageError(f"{front}: {text}", key=key, code=self.code)


def refuse(checks: Iterable[Check[T]], subject: T, config: ResolvedConfig) -> None:
    """Raise the UsageError of the first check that applies to ``subject``."""
    for check in checks:
        if error := check.error(subject, config):
            raise error


def level_of(config: ResolvedConfig) -> type[Plain]:
    """Return the class of a configuration's ``privacy.level``."""
    return level_for(config.privacy)


def failure(attempt: Callable[[], object]) -> Values | None:
    """Return the message of the ValueError that ``attempt`` raises as ``{why}``, or None if it raises none."""
    try:
        attempt()
    except ValueError as error:
        return {"why": str(error)}
    return None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else shortened(value)
