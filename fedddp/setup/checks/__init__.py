"""Every check across configuration keys, in one table: condition, keys, code, reason and remedy.

The bounds of a single key are part of its type in `fedddp.config.schema`; the keys of one choice (an algorithm, a
partition) are checked by its class.
"""

from __future__ import annotations

import re
from typing import Any

from .configuration import CONFIGURATION
from .data import COMPRESSION, MACHINE, POPULATION, TASK, Facts
from .privacy import PRIVACY, REMEMBERED, RING, SECURE
from .table import Check, refuse

BEFORE_NOISE = (*TASK, *POPULATION, *PRIVACY, *SECURE)
"""Checks of data and model, made before the noise multiplier is found for a target epsilon."""
AFTER_NOISE = (*RING, *COMPRESSION, *REMEMBERED)
"""Checks made once the noise multiplier is known."""
TABLE: tuple[Check[Any], ...] = (*CONFIGURATION, *MACHINE, *BEFORE_NOISE, *AFTER_NOISE)
"""All checks, in the order in which they are made."""
_PLACEHOLDER = re.compile(r"{(\w+)[^}]*}")

__all__ = ["AFTER_NOISE", "BEFORE_NOISE", "CONFIGURATION", "MACHINE", "TABLE", "Facts"]
__all__ += ["Check", "as_markdown", "refuse"]


def as_markdown(checks: tuple[Check[Any], ...] = TABLE) -> str:
    """Return the table for the documentation: code, keys, reason and remedy; placeholders stand in italics."""

    rows = ["| code | keys | why it cannot run | remedy |", "|---|---|---|---|"]
    for check in checks:
        keys = ", ".join(f"`{key}`" for key in check.keys)
        reason, remedy = (_PLACEHOLDER.sub(r"*\1*", text) for text in (check.reason, check.remedy))
        rows.append(f"| `{check.code}` | {keys} | {reason} | {remedy} |")
    return "\n".join(rows) + "\n"
