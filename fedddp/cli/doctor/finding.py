"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it (empty where nothing need be done)."""

    about: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
