"""Every check across configuration keys, in one table: condition, keys, code, reason and remedy.

The bounds of a single key are part of its type in `fedddp.config.schema`; the keys of one choice (an algorithm, a
partition) are checked by its class.
"""

from typing import Any

from .account import ACCOUNT
from .configuration import AGGREGATION, CONFIGURATION, EQUAL_WORK, EVALUATION, PARTICIPATION
from .continued import CONTINUED
from .data import COMPRESSION, MACHINE, POPULATION, TASK, Facts
from .mechanism import MECHANISM
from .privacy import PRIVACY, REMEMBERED, RING, SECURE
from .survivors import LOST_STATES, SURVIVORS
from .table import Check, refuse

BEFORE_NOISE = (*TASK, *POPULATION, *PRIVACY, *ACCOUNT, *SECURE)
"""Checks of data and model, made before the noise multiplier is found for a target epsilon."""
AFTER_NOISE = (*RING, *COMPRESSION, *REMEMBERED, *LOST_STATES)
"""Checks made once the noise multiplier is known."""
GROUPS: dict[str, tuple[Check[Any], ...]] = {
    "Local work and cohorts": PARTICIPATION,
    "Equal work": EQUAL_WORK,
    "Evaluation": EVALUATION,
    "Algorithm and aggregation": AGGREGATION,
    "From round to round": CONTINUED,
    "Correlated noise": MECHANISM,
    "Machine": MACHINE,
    "Task and model": TASK,
    "Clients' examples": POPULATION,
    "Levels of privacy": PRIVACY,
    "Privacy accounts": ACCOUNT,
    "Secure aggregation": SECURE,
    "Fixed-point sums": RING,
    "Compression": COMPRESSION,
    "Clients' states": REMEMBERED,
    "Going on without lost ranks": (*SURVIVORS, *LOST_STATES),
}
"""All checks, in the order in which they are made."""
TABLE: tuple[Check[Any], ...] = tuple(check for checks in GROUPS.values() for check in checks)

__all__ = [
    "AFTER_NOISE",
    "BEFORE_NOISE",
    "CONFIGURATION",
    "GROUPS",
    "MACHINE",
    "SURVIVORS",
    "TABLE",
    "Check",
    "Facts",
    "refuse",
]
