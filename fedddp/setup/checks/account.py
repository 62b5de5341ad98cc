"""Checks of a party's privacy account: a record that nobody could trust, or that would have nothing in it."""

from ...config.schema import PrivacyAccountSection
from .data import Facts
from .table import Check, level_of


def _kept(f: Facts) -> bool:
    return bool(f.config.privacy.account.dir)


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
    Check(
        "account-dir-missing",
        ("privacy.account.dir", "privacy.account.key", "privacy.account.epsilon", "privacy.account.delta"),
        lambda f: not _kept(f) and f.config.privacy.account != PrivacyAccountSection(),
        "without it no account is kept, and the other keys of privacy.account have no effect",
        "name a folder of this rank's own",
    ),
)
