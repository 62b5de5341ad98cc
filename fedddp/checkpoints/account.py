"""The record of a party's privacy account: one signed line per release, each bound to the one before.

    {"release": 3, "run": "fedavg", "config": "5f1c...", "level": "client", "round": 2, "spent": [[1.0, 0.25, 3]],
     "key": "d75a...", "previous": "9b0e...", "signature": "..."}

``release`` counts the releases about this party's clients in a run, ``round`` is from 0, and ``spent`` is what all of
these releases together were: for each client one of the segments (sigma, q, steps), see `fedddp.privacy.Composition`.
``previous`` is the SHA-256 of the line before; the signature (Ed25519) covers all that stands before it in its line.

A chain shows what was changed, left out or reordered, but not that lines at its end are missing. So their number and
the SHA-256 of the last one lie beside the key, in ``KEY.account``, which is written after the line: a kill between the
two leaves the record ahead by a line, which is accepted. One key signs one record.
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..privacy import Composition, merged
from ..secure.identity import Identity, signed_by
from .durable import WriteError, sync, write_bytes, writing
from .lock import hold

log = logging.getLogger("fedddp")

FILE = "account.jsonl"
START = "0" * 64
"""What the first line names as the one before it."""
REMEDY = "the run ends before the release; make room or the folder writable, and continue with --run.resume=auto"
_RESTORE = "restore it from a copy, or begin another record with a new key and add by hand what this one says"
_LINE = re.compile(rb'(\{.*), "signature": "([0-9a-f]{128})"\}')
_DOMAIN = b"fedddp account\0"

Run = tuple[str, str]
"""The name of a run and the digest of its configuration."""


class AccountError(ValueError):
    """A record that was changed or cut, or is another key's; one line that names the file and what to do."""


@dataclass
class History:
    """What the lines of a record say.

    Attributes:
        lines: their number.
        size: their length in bytes.
        last: the SHA-256 of the last one.
        previous: that of the one before it.
        key: the public key that signed them, in hexadecimal; empty without lines.
        level: the level of privacy of its runs; empty without lines.
        releases: the number of releases of each run.
        spent: what each run released; what a later line leaves out still counts.
    """

    lines: int = 0
    size: int = 0
    last: str = START
    previous: str = START
    key: str = ""
    level: str = ""
    releases: dict[Run, int] = field(default_factory=dict)
    spent: dict[Run, Composition] = field(default_factory=dict)

    def add(self, line: bytes) -> None:
        """Check one more line, without its end, and count it. Raises ValueError."""
        signed, entry = _LINE.fullmatch(line), json.loads(line)
        if not signed or not signed_by(
            bytes.fromhex(entry["key"]), bytes.fromhex(signed[2].decode()), _DOMAIN + signed[1]
        ):
            raise ValueError("was changed")
        if self.key not in ("", entry["key"]):
            raise ValueError("is signed by another key than the lines before")
        if entry["previous"] != self.last:
            raise ValueError("does not follow the line before: lines are missing, added or in another order")
        run = entry["run"], entry["config"]
        segments = tuple((float(sigma), float(q), int(steps)) for sigma, q, steps in entry["spent"])
        self.spent[run] = merged(self.spent.get(run, ()), segments)
        self.releases[run] = max(self.releases.get(run, 0), int(entry["release"]))
        self.lines, self.size, self.previous = self.lines + 1, self.size + len(line) + 1, self.last
        self.last, self.key, self.level = hashlib.sha256(line).hexdigest(), entry["key"], entry["level"]


def read(folder: Path, key: Path | None = None) -> History:
    """Check every line of the record in ``folder`` and return what they say.

    A last line that has no end was cut short by a kill before its release, and is left out.

    Args:
        folder: where the record is.
        key: the private key's file; without, neither whose record it is nor that its end is whole can be checked.

    Raises:
        AccountError: the record was changed or cut, or is another key's.
        OSError: it cannot be read.
    """
    path, history = folder / FILE, History()
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            history.add(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            said = first_line(error) if type(error) is ValueError else "was changed"
            raise AccountError(f"{path}: line {number} {said}; {_RESTORE}") from None
    if key is not None:
        _check_whole(path, history, key)
    return history


def _check_whole(path: Path, history: History, key: Path) -> None:
    """Raise AccountError unless the record is ``key``'s, and as long as is known beside it, or a line longer."""
    mine, end = Identity.load(key).public.hex(), _end(key)
    if history.key not in ("", mine):
        raise AccountError(
            f"{path}: is signed by the key {history.key[:16]}, not by {key} ({mine[:16]}); name that key"
        )
    try:
        known = json.loads(end.read_bytes()) if end.exists() else {"lines": 0, "last": START}
        fits = (known["lines"], known["last"]) in (
            (history.lines, history.last),
            (history.lines - 1, history.previous),
        )
    except (ValueError, KeyError, TypeError):
        raise AccountError(
            f"{end}: is not readable, so a cut record could not be told from a whole one; {_RESTORE}"
        ) from None
    if not fits:
        raise AccountError(
            f"{path}: has {history.lines} lines, not the {known['lines']} of which {end} knows: it was cut, or is "
            f"another record; {_RESTORE}"
        )


def _end(key: Path) -> Path:
    return key.with_name(f"{key.name}.account")


class Record:
    """A record that this process writes until `release`, locked against others.

    Raises AccountError, IdentityError for the key, `lock.Busy`, and OSError where the folder cannot be written.
    """

    def __init__(self, folder: Path, key: Path) -> None:
        self.path, self._end, self._identity = folder / FILE, _end(key), Identity.load(key)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = hold(folder)
        try:
            self.history = read(folder, key)
            if self.path.exists() and self.path.stat().st_size > self.history.size:
                log.warning("%s: the last line was cut short by a kill before its release, and is removed", self.path)
                os.truncate(self.path, self.history.size)
            self._write_end()
        except BaseException:
            self.release()
            raise

    def append(self, run: Run, release: int, level: str, round: int, spent: Composition) -> None:
        """Record a release before it happens; it is on disk on return. Raises WriteError."""
        entry: dict[str, Any] = {"release": release, "run": run[0], "config": run[1], "level": level, "round": round}
        entry |= {"spent": spent, "key": self._identity.public.hex(), "previous": self.history.last}
        body = json.dumps(entry).encode()[:-1]
        line = body + f', "signature": "{self._identity.sign(_DOMAIN + body).hex()}"}}'.encode()
        with writing(f"the account {self.path}", REMEDY):
            with self.path.open("ab") as file:
                if file.tell() != self.history.size:
                    raise WriteError(f"{self.path} was changed by another program; {REMEDY}")
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if not self.history.lines:
                sync(self.path.parent)
            self.history.add(line)
            self._write_end()

    def release(self) -> None:
        """Let other processes write the record."""
        self._lock.release()

    def _write_end(self) -> None:
        write_bytes(self._end, json.dumps({"lines": self.history.lines, "last": self.history.last}).encode())
        sync(self._end.parent)  # or a power failure could leave it behind by several lines
