"""Checks of noise that is correlated over rounds."""

from ...config import ResolvedConfig
from ...privacy import MECHANISMS
from .table import Check, level_of

MECHANISM: tuple[Check[ResolvedConfig], ...] = (
    Check(
        "mechanism-level",
        ("privacy.mechanism", "privacy.level"),
        lambda c: bool(MECHANISMS[c.privacy.mechanism]) and not level_of(c).clips_updates,
        "correlates the noise of privacy.level=client, and that level is off",
        "use privacy.level=client, or privacy.mechanism=gaussian",
    ),
    Check(
        "mechanism-adaptive-clip",
        ("privacy.adaptive_clip.enabled", "privacy.mechanism"),
        lambda c: bool(MECHANISMS[c.privacy.mechanism]) and c.privacy.adaptive_clip.enabled,
        "correlated noise is in units of one clip for all rounds, which bounds what a client adds to them",
        "use a fixed clip, or privacy.mechanism=gaussian",
    ),
    Check(
        "mechanism-equal-work",
        ("privacy.equal_work", "privacy.mechanism"),
        lambda c: bool(MECHANISMS[c.privacy.mechanism]) and c.privacy.equal_work,
        "hides how many clients are drawn, which all may know of cohorts in a fixed order",
        "leave it off",
    ),
    Check(
        "mechanism-cohort",
        ("privacy.mechanism", "cohort.size", "cohort.fraction"),
        lambda c: (
            {"m": c.cohort_size, "n": c.num_clients, "most": c.num_clients // 2}
            if MECHANISMS[c.privacy.mechanism] and c.separation == 1 and c.privacy.bands != 1
            else None
        ),
        "with {m} of {n} clients per round a client takes part in consecutive rounds, whose noise cannot be correlated",
        "use cohort.size={most} at most, or privacy.mechanism=gaussian",
    ),
    Check(
        "bands-idle",
        ("privacy.bands", "privacy.mechanism"),
        lambda c: c.privacy.bands > 0 and c.privacy.mechanism != "banded_mf",
        "has no effect, only banded_mf has bands",
        "use privacy.mechanism=banded_mf, or leave bands out",
    ),
    Check(
        "bands-many",
        ("privacy.bands", "cohort.size", "data.partition.num_clients"),
        lambda c: {"b": c.separation} if c.privacy.bands > c.separation else None,
        "a client takes part again after {b} rounds, so that one row of the matrix would have two of its updates",
        "use {b} bands at most, or a smaller cohort",
    ),
)
"""Checks of a resolved configuration."""
