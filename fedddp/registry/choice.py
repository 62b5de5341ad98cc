"""Configuration sections chosen by ``name``: the chosen dataclass is the section, its fields are the keys.

A family (optimizers, partitions, models, algorithms) is a dict literal from name to dataclass; a user's own class is
named by import path. `Choice` annotates the field that holds one of a family.
"""

import dataclasses
import errno
import functools
import importlib
import inspect
import os
import stat
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ..errors import OWN_CODE
from .kinds import unfit
from .spelling import suggestion
from .torchvision_operators import declare_if_missing

RULES = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


FAMILY = ":"
"""Ends the registered names that stand for many: a section named ``torchvision:resnet18`` is the class registered as
``torchvision:``, and its field annotated with `Member` holds ``resnet18``."""
Member = Field(validation_alias=FAMILY)  # no key: a section cannot give it besides its name

Off = BeforeValidator(lambda value: None if value == "off" else value)
"""For an optional key: "off" unsets it."""


def _expanded(path: Any, check: Callable[[Any], str | None]) -> str | None:
    text = check(str(path) if isinstance(path, Path) else path)
    return text and os.path.expanduser(text)


UserPath = WrapValidator(_expanded)
"""For a key that is a path: ``~`` is the user's home; in Python it may be a `Path`."""


def user_path(text: str | Path) -> Path:
    """A user's path, with ``~`` expanded to the home."""
    return Path(os.path.expanduser(text))


def read_file(path: Path, at_most: int = -1) -> bytes:
    """Return the content, or the first ``at_most`` bytes, of a file that a user named.

    Raises:
        OSError: it cannot be read, or is a FIFO, a device or a socket, whose content may never end. Pipes without a
            name (of a shell's ``<(command)``) are read.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and os.path.exists(os.path.realpath(path)):
        raise OSError(errno.EINVAL, "Not a regular file")
    with path.open("rb") as file:
        return file.read(at_most)


class Wrapped(Protocol):
    """The section of an imported class: a dataclass with ``path``, ``module`` and ``args``.

    ``makes``: the kind of object that calling it gives.
    """

    makes: ClassVar[type]

    def __init__(self, path: str, module: Any, args: dict[str, Any]) -> None: ...

    def table(self) -> dict[str, Any]:
        """The section's keys and values, ``name`` first."""
        ...


@dataclass(frozen=True)
class Choice:
    """A table with ``name`` from ``registry``, or ``package.module:Class``, and that class's keys.

    A registered name that ends in a colon is a family, see `FAMILY`.

    ``default`` is what the table holds where the user names nothing else; ``others``: what it holds for other names
    where that differs from the class's own defaults. ``wrap`` makes a section of an imported class that is not a
    dataclass, of its import path, the class and the remaining keys. Those that ``wrap`` has as keyword-only fields are
    its own, unless the class's constructor takes them.
    """

    registry: Mapping[str, type]
    default: Mapping[str, Any]
    wrap: type[Wrapped] | None = None
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _adapters: dict[type, TypeAdapter[Any]] = field(default_factory=dict, compare=False, repr=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(functools.partial(self.validate, kind=source))

    def validate(self, value: Any, kind: type = object) -> Any:
        """The section object for a table; an object is returned unchanged. ``kind``: its class, or a protocol."""
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, dict):
            raise _mistake(f"expected a section; write its name as .name={value}", value=value)
        table = dict(value)
        name = table.pop("name", self.default["name"])
        if isinstance(name, str):
            table = {**self.given(name), **table}
        cls, member = self._named(name)
        wrap = None if dataclasses.is_dataclass(cls) else self.wrap
        if wrap is None and not dataclasses.is_dataclass(cls):
            raise _mistake("should name a dataclass", at="name", value=name)
        if cls not in self.registry.values() and (wrong := unfit(cls, wrap.makes if wrap else kind)):
            raise _mistake(wrong, at="name", value=name)
        return self._wrapped(wrap, cls, name, table) if wrap else self._checked(cls, table | member)

    def _checked(self, cls: Any, table: dict[str, Any]) -> Any:
        try:
            return self._adapter(cls).validate_python(table)
        except ValidationError as error:
            raise PydanticCustomError("nested", "{errors}", {"errors": error.errors(), "cls": cls}) from None

    def given(self, name: str) -> dict[str, Any]:
        """The keys of a table with only ``name`` that differ from the class's defaults."""
        table = self.default if name == self.default["name"] else self.others.get(name, {})
        return {key: value for key, value in table.items() if key != "name"}

    def _adapter(self, cls: Any) -> TypeAdapter[Any]:
        if cls not in self._adapters:
            if not hasattr(cls, "__pydantic_config__"):
                cls.__pydantic_config__ = RULES
            self._adapters[cls] = TypeAdapter(cls)
        return self._adapters[cls]

    def _named(self, name: Any) -> tuple[Any, dict[str, str]]:
        """The class of ``name``, and what its field of a family's member is, if it has one."""
        family, colon, member = name.partition(FAMILY) if isinstance(name, str) else ("", "", "")
        if family + colon in self.registry and colon:
            return self.registry[family + colon], {FAMILY: member}
        if colon:
            return import_class(name, [known for known in self.registry if known.endswith(FAMILY)]), {}
        if not isinstance(name, str) or name not in self.registry:
            known = f"should be {', '.join(map(repr, self.registry))} or package.module:Class"
            raise _mistake(known + suggestion(str(name), self.registry), at="name", value=name)
        return self.registry[name], {}

    def _wrapped(self, wrap: Any, cls: Any, name: str, args: dict[str, Any]) -> Any:
        own = {f.name for f in dataclasses.fields(wrap) if f.kw_only}
        signature = inspect.signature(cls)
        common = {key: args.pop(key) for key in own & args.keys() if key not in signature.parameters}
        try:
            signature.bind(**args)
        except TypeError as error:
            raise _mistake(
                f"its constructor does not accept this section's other keys ({error})", at="name", value=name
            ) from None
        return self._checked(wrap, {"path": name, "module": cls, "args": args, **common})

    def dump(self, section: Any) -> dict[str, Any]:
        """The table of a section object, ``name`` first."""
        for name, cls in self.registry.items():
            if type(section) is cls:
                member = "".join(getattr(section, field) for field in _fields(cls)[1])
                return {"name": name + member, **dump(section)}
        if self.wrap is not None and isinstance(section, self.wrap):
            return section.table()
        return {"name": path_of(type(section)), **dump(section)}


def dump(section: Any) -> dict[str, Any]:
    """A section as plain TOML values, without those that are None (off)."""
    table: dict[str, Any] = {}
    for name, choice in fields_of(type(section)).items():
        value = getattr(section, name)
        if choice is not None:
            table[name] = choice.dump(value)
        elif isinstance(value, BaseModel):
            table[name] = dump(value)
        elif value is not None:
            table[name] = list(value) if isinstance(value, tuple) else value
    return table


def fields_of(cls: type) -> dict[str, Choice | None]:
    """A section's keys in order, each with its `Choice`, if it is one."""
    return _fields(cls)[0]


def section_of(cls: type, name: str) -> type[BaseModel] | None:
    """The class of the section that a section's key is, if it is one."""
    kind = _fields(cls)[2].get(name)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


@functools.cache  # called some thirty times per dump; type hints take a millisecond
def _fields(cls: type) -> tuple[dict[str, Choice | None], list[str], dict[str, Any]]:
    """See `fields_of`; the fields that are no keys, since they hold the `Member` of a family; the types of all."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = cls.model_fields if issubclass(cls, BaseModel) else [f.name for f in dataclasses.fields(cls)]
    extras = {name: getattr(hints[name], "__metadata__", ()) for name in names}
    members = [name for name in names if any(extra is Member for extra in extras[name])]
    found = {name: next((e for e in extras[name] if isinstance(e, Choice)), None) for name in names}
    return {name: choice for name, choice in found.items() if name not in members}, members, hints


def keys_of(
    cls: type, prefix: str = "", family: Mapping[str, type] | None = None, condition: str = ""
) -> Iterator[tuple[str, str]]:
    """All dotted keys of a section and of every choice in it, each with the choice ("a.name=b") that it needs.

    A choice inside one of the same ``family`` has the keys of the outer one again; these are left out.
    """
    for name, choice in fields_of(cls).items():
        section = section_of(cls, name)
        if choice is not None:
            yield f"{prefix}{name}.name", condition
            if family is None or not choice.registry.items() <= family.items():
                for option, chosen in choice.registry.items():
                    needed = "" if option == choice.default["name"] else f"{prefix}{name}.name={option}"
                    yield from keys_of(chosen, f"{prefix}{name}.", choice.registry, condition or needed)
        elif section is not None:
            yield from keys_of(section, f"{prefix}{name}.", condition=condition)
        else:
            yield f"{prefix}{name}", condition


def path_of(cls: type) -> str:
    """``package.module:Class``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def import_class(path: str, families: Iterable[str] = ()) -> Any:
    """The object that ``package.module:Name`` names; an error names the half that does not exist.

    ``families`` are what could also stand in front of a colon, for the suggestion.
    """
    module_name, _, attribute = path.partition(":")
    declare_if_missing()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        near = suggestion(f"{module_name}{FAMILY}", families) or "; add its folder to PYTHONPATH"
        reason = f"cannot be imported: no module {error.name!r}{near}"
        raise _mistake(reason, at="name", value=path) from error
    except OWN_CODE as error:
        raise _mistake(f"cannot be imported ({type(error).__name__}: {error})", at="name", value=path) from error
    if not hasattr(module, attribute):
        near = suggestion(attribute, vars(module))
        raise _mistake(f"cannot be imported: {module_name} has no {attribute!r}{near}", at="name", value=path)
    return getattr(module, attribute)


def _mistake(reason: str, *, at: str = "", value: Any) -> PydanticCustomError:
    return PydanticCustomError("mistake", "{reason}", {"reason": reason, "at": at, "value": value})
