"""Checks of a party's privacy account: a record that nobody could trust, or that would have nothing in it."""

from functools import partial

from .data import Facts
from .table import Check, level_of


def _kept(f: Facts) -> bool:
    return bool(f.config.privacy.account.dir)


def _alone(key: str, f: Facts) -> bool:
    return getattr(f.config.privacy.account, key) is not None and not _kept(f)


ACCOUNT: tuple[Check[Facts], ...] = (
    Check(
        "account-idle",
        ("privacy.account.dir", "privacy.level"),
        lambda f: _kept(f) and not level_of(f.config).unit,
        "has nothing to record with privacy.level=none",
        "use privacy.level=example or client",
    ),
    Check(
        "account-seeded",
        ("privacy.account.dir", "privacy.randomness"),
        lambda f: _kept(f) and f.config.privacy.randomness == "seeded",
        "noise that can be predicted guarantees nothing, and would be recorded as if it did",
        "use privacy.randomness=secret",
    ),
    Check(
        "account-key-missing",
        ("privacy.account.key", "privacy.account.dir"),
        lambda f: _kept(f) and not f.config.privacy.account.key,
        "the record is signed, so that others who write to its folder cannot change it unnoticed",
        "name a key of this party's own; fedddp keygen --rank=K --out=FOLDER makes one",
    ),
    *(
        Check(
            f"account-{key}-alone",
            (f"privacy.account.{key}", "privacy.account.dir"),
            partial(_alone, key),
            "has no effect without privacy.account.dir",
            "name a folder of this rank's own",
        )
        for key in ("epsilon", "delta")
    ),
)
