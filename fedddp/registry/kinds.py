"""What an import path may name: a class of the expected kind, or a function that says it returns one.

Looked up without calling it, so that ``model.name=os:system`` is a line and not a command that runs.
"""

import typing
from typing import Any


def unfit(found: Any, kind: type) -> str:
    """Return why calling ``found`` does not give a ``kind``, so far as can be told without calling it; else nothing.

    A class fits that is a subclass or, of a protocol or an abstract class, has the methods that these ask for; a
    function, if it is annotated to return such a class.
    """
    made = found if isinstance(found, type) else _returned(found)
    if made is None:
        return (
            f"is a {type(found).__name__} that does not say what it returns; name a class, or a function annotated to "
            f"return {_named(kind)}"
        )
    if issubclass(made, kind) if not _is_protocol(kind) else kind in made.__mro__:
        return ""
    required = _required(kind)
    lacking = [name for name in required if not any(name in vars(base) for base in made.__mro__[:-1])]
    if required and not lacking:
        return ""
    whose = "is" if made is found else f"returns {made.__name__}, which is"
    lacks = f" (it has no {', '.join(lacking)})" if lacking else ""
    return f"{whose} no {_named(kind)}{lacks}; docs/extending.md says what each key takes"


def _named(kind: type) -> str:
    return "one" if kind is object else kind.__name__


def _returned(function: Any) -> type | None:
    """The class that a function is annotated to return; None without one."""
    try:
        hint = typing.get_type_hints(function).get("return")
    except Exception:  # of annotations that are any code: names that are not there, what is no annotation
        return None
    return hint if isinstance(hint, type) and hint is not type(None) else None


def _is_protocol(kind: type) -> bool:
    return getattr(kind, "_is_protocol", False)


def _required(kind: type) -> list[str]:
    """The methods of a protocol, or those that an abstract class leaves open."""
    if not _is_protocol(kind):
        return sorted(getattr(kind, "__abstractmethods__", ()))
    own = {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
    return sorted(own | ({"__call__"} & vars(kind).keys()))
