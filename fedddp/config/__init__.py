"""The configuration of a run: schema, files, and the words of a command line."""

from ..errors import UsageError
from .load import build, checked, chosen, flatten, merge, nested, read_toml, to_dict, to_toml
from .plain import one_line
from .resolved import ResolvedConfig
from .schema import Config
from .words import Request, parse

__all__ = [
    "Config",
    "Request",
    "ResolvedConfig",
    "UsageError",
    "build",
    "checked",
    "chosen",
    "flatten",
    "merge",
    "nested",
    "one_line",
    "parse",
    "read_toml",
    "to_dict",
    "to_toml",
]
