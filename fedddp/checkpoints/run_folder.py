"""Make and find run folders, ``<run.dir>/<run.name>/``, which are never overwritten."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import OWN_CODE
from .lock import Busy, Lock, hold, holder

log = logging.getLogger("fedddp")

SPENT = "privacy.jsonl"
"""File of the privacy spent, in a run folder; see `checkpoints.spend_file`."""
LONGEST = 240
"""Largest number of bytes of a run's name: a file system allows 255, and a number may follow."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; ``resumed``: whether it existed before."""

    path: Path
    resumed: bool
    lock: Lock | None = field(default=None, compare=False, repr=False)

    def claimed(self, launch: str) -> RunFolder:
        """This folder, made and locked; or the next free number, if another process was faster.

        ``launch``: the launch that makes it.
        """
        folder = self
        while not folder.resumed:
            try:
                folder.path.mkdir(parents=True)
                break
            except FileExistsError:
                label, number = _label_and_number(folder.path.name)
                folder = RunFolder(folder.path.with_name(f"{label}-{number + 1}"), resumed=False)
        folder = folder.held()
        folder.write("launch", launch)
        return folder

    def held(self) -> RunFolder:
        """This folder, locked until `release`. Raises Busy if another process has locked it."""
        return replace(self, lock=hold(self.path))

    def release(self) -> None:
        """Unlock the folder."""
        if self.lock:
            self.lock.release()

    def write(self, name: str, content: str) -> None:
        """Write a small file, replaced as a whole."""
        hidden = self.path / f".{name}"
        hidden.write_text(content, encoding="utf-8")
        hidden.replace(self.path / name)

    def status(self, state: str, **more: Any) -> None:
        """Write ``status.json``: "running", "interrupted", "done" or "failed", with the time, or ``updated``."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        content = json.dumps({"state": state, **more, "pid": os.getpid(), "updated": stamp} | more)
        try:
            self.write("status.json", content)
        except OSError:
            self._overwrite("status.json", content)

    def ended(self, error: BaseException, **more: Any) -> None:
        """Write the status of a run that ``error`` ended: "failed", or "interrupted" if it was asked to stop.

        ``more``: further entries; by default the rounds are those of the previous status.
        """
        before = read_json(self.path / "status.json")
        if isinstance(error, OWN_CODE):
            self._settled(before, "failed", **more, error=f"{type(error).__name__}: {error}")
        else:
            self._settled(before, "interrupted", **more, reason=str(error) or type(error).__name__)
        self.release()

    def settle(self, state: str = "interrupted", by: str = "", **cause: str) -> str | None:
        """Write the end of a run whose process did not, while this process holds the folder.

        Args:
            state: how it ended, as far as the caller knows.
            by: the beginning of a ``reason`` that the caller knows the cause of: such a status is replaced, too.
            cause: entries of the status that say so; by default that its process ended without writing why.

        Returns:
            What was found, in words; None if the run had written its end, and nothing is to be done.
        """
        before = read_json(self.path / "status.json")
        if not _open(before, by):
            return None
        lost = f"process {before.get('pid')} ended without writing why (killed, or the machine failed)"
        last = f"last heard of in round {before.get('round', 0)} at {before.get('updated') or 'an unknown time'}"
        self._settled(before, state, **cause or {"reason": lost}, updated=before.get("updated"))
        return f"{lost}, {last}"

    def _settled(self, before: dict[str, Any], state: str, **more: Any) -> None:
        """Write a last status after ``before``, whose rounds it keeps."""
        self.status(state, **{key: before[key] for key in ("round", "rounds") if key in before} | more)

    def _overwrite(self, name: str, content: str) -> None:
        """Overwrite a file in its own blocks, which is possible on a full disk."""
        try:
            with (self.path / name).open("r+", encoding="utf-8") as file:
                file.write(content)
                file.truncate()
        except OSError as error:
            log.warning("%s cannot be written (%s) and still holds an earlier state", self.path / name, error.strerror)


def read_json(path: Path) -> dict[str, Any]:
    """Read the object of a small file; empty where it is missing, was cut off, or holds none."""
    return _entry(_text(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the object of each line, such as of ``metrics.jsonl``; empty for a line that is damaged."""
    return [_entry(line) for line in _text(path).splitlines() if line.strip()]


def _entry(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, which was started."""
    return _name_of(path) is not None and (path / "status.json").is_file()


def state_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The state of a run, and the content of its ``status.json``.

    A process that was killed leaves "running" there. The run is interrupted then, unless its folder is still locked, or
    it runs on another machine, whose locks may not be seen from here.
    """
    try:
        status = json.loads((path / "status.json").read_text(encoding="utf-8"))
        state = str(status["state"])
    except (OSError, ValueError, TypeError, KeyError):
        return "unknown", {}
    if state == "running" and holder(path) is None:
        state = "interrupted"
    return state, status


def settle(path: Path, *args: str, **cause: str) -> None:
    """Write the end of a run whose process did not, see `RunFolder.settle`, unless another process writes it."""
    with suppress(Busy, OSError):
        if _open(read_json(path / "status.json"), *args[1:]) and holder(path) is None:
            folder = RunFolder(path, resumed=True).held()
            folder.settle(*args, **cause)
            folder.release()


def _open(status: dict[str, Any], by: str = "") -> bool:
    """Return whether a status is none of an end, or that of an end that was asked for ``by`` a signal."""
    return status.get("state") == "running" or bool(by and str(status.get("reason")).startswith(by))


def of_launch(folders: Iterable[Path], launch: str) -> list[Path]:
    """Return the run folders that a launch made or continued."""
    return [folder for folder in folders if _text(folder / "launch") == launch]


def check_name(name: str) -> None:
    """Raise ValueError, in one line, if no folder can have this ``run.name``."""
    size = len(name.encode(errors="surrogateescape"))
    if size > LONGEST:
        raise ValueError(f"run.name={name[:20] + '...'!r}: has {size} bytes and names a folder; use {LONGEST} at most")
    if "/" in name or not name.isprintable():
        raise ValueError(
            f"run.name={name!r}: names one folder and cannot hold '/' or control characters; name it without them, and "
            "choose the folder above with run.dir"
        )


def locate(parent: Path, name: str, resume: str, launch: str = "") -> RunFolder:
    """The folder of a run that starts or continues. Nothing is created yet.

    ``resume`` is "never": a new folder, with -2, -3, ... after the name if that exists; but if the same ``launch`` has
    made one and not finished it, this is a restart, which continues there. "auto": the newest of that name, or a new
    one. Otherwise: the run folder itself; raises ValueError if it is none.
    """
    if resume not in ("never", "auto"):
        path = Path(resume)
        if not (path / "config.toml").is_file():
            raise ValueError(f"run.resume={resume!r}: is not a run folder (it has no config.toml)")
        return RunFolder(path, resumed=True)
    label = label_of(name)
    found = _numbered(parent, label, name)
    if resume == "auto":
        _warn_of_nameless(parent, label, max(found, default=0))
    if resume == "never":
        found = {n: path for n, path in found.items() if launch and _unfinished(path, launch)}
    if found:
        return RunFolder(found[max(found)], resumed=True)
    return RunFolder(parent / label if not (parent / label).exists() else _next_free(parent, label), resumed=False)


def label_of(name: str) -> str:
    """Return the name of a run as files have it, and other programs: without spaces, slashes and the like."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "run"


def _numbered(parent: Path, label: str, name: str | None) -> dict[int, Path]:
    """Run folders of a run's name by number; the one without a number is number 1. Without a name: those of none."""
    found = {}
    for path in parent.glob(f"{label}*"):
        match = re.fullmatch(re.escape(label) + r"(?:-(\d+))?", path.name)
        if match and _name_of(path) == name:
            found[int(match[1] or 1)] = path
    return found


def _warn_of_nameless(parent: Path, label: str, newest: int) -> None:
    """Say which folders that are newer than what is continued hold a run whose configuration cannot be read."""
    for number, path in sorted(_numbered(parent, label, None).items()):
        if number > newest and any((path / name).exists() for name in ("metrics.jsonl", "checkpoints")):
            log.warning(
                "%s has rounds of a run, but its config.toml is missing or cannot be read: it is not continued. "
                "Restore that file (state.json of a checkpoint has the configuration) to resume it",
                path,
            )


def _name_of(path: Path) -> str | None:
    """The run.name that a folder was made for; None if it is no run folder."""
    try:
        return tomllib.loads((path / "config.toml").read_text(encoding="utf-8-sig"))["run"]["name"]
    except (OSError, KeyError, TypeError, ValueError):  # not a run folder
        return None


def _unfinished(path: Path, launch: str) -> bool:
    try:
        return (path / "launch").read_text(encoding="utf-8") == launch and "summary.json" not in os.listdir(path)
    except OSError:
        return False


def _next_free(parent: Path, label: str) -> Path:
    numbers = [
        _label_and_number(path.name)[1] for path in parent.glob(f"{label}-*") if path.name[len(label) + 1 :].isdigit()
    ]
    return parent / f"{label}-{max(numbers, default=1) + 1}"


def _label_and_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)-(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 1)
