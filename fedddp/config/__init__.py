"""The configuration of a run: schema, where it comes from, help."""

from ..errors import UsageError
from .help import text as help_text
from .load import build, checked, chosen, flatten, merge, nested, parse, read_toml, to_dict, to_toml
from .plain import one_line
from .resolved import ResolvedConfig
from .schema import Config

__all__ = [
    "Config",
    "ResolvedConfig",
    "UsageError",
    "build",
    "checked",
    "chosen",
    "flatten",
    "help_text",
    "merge",
    "nested",
    "one_line",
    "parse",
    "read_toml",
    "to_dict",
    "to_toml",
]
