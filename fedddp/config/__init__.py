"""The configuration of a run: schema, where it comes from, help."""

from .help import text as help_text
from .load import UsageError, build, checked, flatten, merge, nested, parse, read_toml, to_dict, to_toml
from .schema import Config

__all__ = [
    "Config",
    "UsageError",
    "build",
    "checked",
    "flatten",
    "help_text",
    "merge",
    "nested",
    "parse",
    "read_toml",
    "to_dict",
    "to_toml",
]
