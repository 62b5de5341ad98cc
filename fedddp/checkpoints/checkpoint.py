"""Checkpoints: (round, server state, what clients remember, configuration), atomic and verified.

``checkpoints/round-000012/`` holds safetensors files, ``state.json`` and a manifest with the SHA-256 of each. It is
written under another name, flushed to disk and renamed, so that a folder of that name is whole; a file damaged later
does not match its sum and the folder is skipped. Lost when a process is killed: the round under way, and the one before
it if that was still being written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..clients import ClientStore
from ..comm import Comm
from ..errors import first_line, reason
from ..evaluation.server import Score
from ..flat import FlatSpec
from ..telemetry.background import Background
from ..types import ServerState
from .durable import sync, write_tensors, writing
from .export import BEST, Exports, RatedModel, exported, quality

log = logging.getLogger("fedddp")

CHANGEABLE = (
    "run.name",
    "run.dir",
    "run.rounds",
    "run.resume",
    "run.timeout",
    "run.device",
    "run.backend",
    "run.threads",
    "privacy.guard",
    "privacy.trust_network",
    "privacy.target_epsilon",
    "privacy.secure_aggregation.key",
    "privacy.secure_aggregation.roster",  # fewer parties need another one
)
CHANGEABLE_SECTIONS = ("data.root", "data.download", "data.placement", "evaluate.", "checkpoint.", "telemetry.")
"""Keys that may differ on resume: they do not say what is learned from what."""
FIXED = ("evaluate.holdout",)
"""Keys of such a section that do."""


_Finished = tuple[ServerState, dict[str, Tensor], dict[str, Tensor], Score | None, RatedModel | None]
"""A finished round: the server's state, the clients', the privacy spent, the score, the best model so far."""


@dataclass(frozen=True)
class _State:
    """``state.json``; the last two are not in those of earlier versions."""

    round: Annotated[int, Field(ge=1, le=10**6, strict=True)]
    num_trainable: Annotated[int, Field(ge=1, le=2**62, strict=True)]
    test_accuracy: Annotated[float, Field(strict=True)] | None
    config: dict[str, Any]
    inputs: dict[str, Any] | None = None
    tensors: list[tuple[str, list[int]]] | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found whole."""

    folder: Path
    round: int
    num_trainable: int
    test_accuracy: float | None
    config: dict[str, Any]
    inputs: dict[str, Any] | None = None
    """What the model takes, see `exported`; None in a checkpoint of an earlier version."""
    tensors: list[tuple[str, list[int]]] | None = None
    """The names and shapes of what ``w`` holds, in its order; None in checkpoints of before they were written."""

    def unlike(self, spec: FlatSpec) -> str | None:
        """Where the model of ``spec`` first differs from the one that was saved; None if it does not.

        Without names, only the numbers of entries can be compared.
        """
        own = [(name, list(shape)) for name, shape in zip(spec.names, spec.shapes, strict=True)]
        for i, (saved, now) in enumerate(zip_longest(self.tensors or own, own), start=1):
            if saved != now:
                there, mine = (f"{one[0]} {one[1]}" if one else "nothing" for one in (saved, now))
                return f"tensor {i} is {there} there, {mine} here"
        dim = spec.dim if self.tensors else len(self.server().w)
        if (dim, self.num_trainable) != (spec.dim, spec.num_trainable):
            there = f"{dim} numbers, {self.num_trainable} of them trainable, there"
            return f"{there}, {spec.dim} and {spec.num_trainable} here"
        return None

    def server(self) -> ServerState:
        """The server state, on CPU."""
        tensors = load_file(self.folder / "server.safetensors")
        w = tensors.pop("w")
        return ServerState(w, self.num_trainable, tensors, self.round)

    def budget(self) -> dict[str, Tensor]:
        """The privacy spent; empty where there is no budget."""
        path = self.folder / "budget.safetensors"
        return load_file(path) if path.exists() else {}


class Checkpoints:
    """Writes checkpoints of one run, in the background. The server state is rank 0's to write; a rank writes its own
    clients' state.

    ``stateful``: whether clients remember anything. Then all ranks must see the same file system. ``done``: the round
    that is resumed; what later rounds left (damaged, or half written by a killed attempt) is removed. ``exports``: what
    is written beside them for use elsewhere. ``inputs``: what the model takes, see `Exports`. ``spec``: of the model.
    """

    def __init__(
        self,
        run_folder: Path,
        config: Mapping[str, Any],
        comm: Comm,
        *,
        every: int,
        keep: int,
        stateful: bool,
        done: int = 0,
        exports: Exports | None = None,
        inputs: Mapping[str, Any] | None = None,
        spec: FlatSpec | None = None,
    ) -> None:
        self._inputs = inputs
        self._folder, self._config, self._comm = run_folder / "checkpoints", dict(config), comm
        self._every, self._keep, self._stateful, self._spec = every, keep, stateful, spec
        self._exports = exports if comm.rank == 0 else None
        self._current: _Finished | None = None
        self._background = Background()
        self._begun = self.written = self._done = done  # rounds: begun to write, on disk, resumed
        if comm.rank == 0:  # the others write after a round
            for leftover in (*self._folder.glob(".round-*"), *self._folder.glob("round-*")):
                if leftover.name.startswith(".") or leftover.name > f"round-{done:06d}":
                    shutil.rmtree(leftover, ignore_errors=True)

    def after_round(
        self,
        server: ServerState,
        store: ClientStore,
        score: Score | None,
        *,
        last: bool,
        spent: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Remember the state of a finished round, and write it when due; the last is written on return.

        ``spent``: what the privacy budget remembers, where there is one.
        """
        clients = store.state_dict() if self._stateful else {}
        best = self._exports.after_round(server.round, server.w, score) if self._exports else None
        self._current = (server, clients, dict(spent or {}), score, best)
        if self._every and (last or server.round % self._every == 0):
            self._begun = server.round
            self._background.run(self._write, *self._current, 60.0)
        if last and self._exports:
            self._background.run(self._exports.at_end, best, server.round, server.w, score)
        if last:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is on disk. Raises WriteError if it cannot be written."""
        self._background.wait()

    def close(self) -> None:
        """End the thread that writes, once what was begun is on disk; without waiting for that."""
        self._background.close()

    def flush(self, patience: float = 60.0) -> int:
        """Write the last finished round unless it is written; its number, 0 if there is none.

        ``patience``: seconds rank 0 waits for the other ranks' files.
        """
        self.wait()
        if self._current is not None and self._begun != self._current[0].round:
            self._begun = self._current[0].round
            self._write(*self._current, patience)
        return self.written

    def _write(
        self,
        server: ServerState,
        clients: dict[str, Tensor],
        spent: dict[str, Tensor],
        score: Score | None,
        best: RatedModel | None,
        patience: float,
    ) -> None:
        partial = self._folder / f".round-{server.round:06d}"
        before = f"the checkpoint of round {self.written} is whole" if self.written else "there is none before it"
        remedy = f"{before}; free space (a smaller checkpoint.keep needs less), then go on with --run.resume=auto"
        with writing(f"the checkpoint of round {server.round} in {self._folder.parent}", remedy):
            try:
                if self._stateful or self._comm.rank == 0:
                    partial.mkdir(parents=True, exist_ok=True)
                if self._stateful:
                    write_tensors(partial / f"clients-{self._comm.rank:05d}.safetensors", clients)
                if self._comm.rank == 0:
                    if spent:
                        write_tensors(partial / "budget.safetensors", spent)
                    self._finish(partial, server, score, patience)
                    if self._exports:
                        self._exports.beside_checkpoint(best, server.round)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)  # leaves space for status.json and the log
                raise
        self.written = server.round

    def restore(self, store: ClientStore, mine: Callable[[int], bool]) -> None:
        """What the clients that live here (``mine``) remembered after the resumed round comes back."""
        if self._stateful and self._done:
            store.load_state_dict(_clients(self._folder / f"round-{self._done:06d}"), mine)

    def _finish(self, partial: Path, server: ServerState, score: Score | None, patience: float) -> None:
        write_tensors(partial / "server.safetensors", {"w": server.w, **server.extra})
        state = {
            "round": server.round,
            "test_accuracy": score.accuracy if score else None,
            "test_loss": score.loss if score and math.isfinite(score.loss) else None,
            "num_trainable": server.num_trainable,
            "world_size": self._comm.world_size,
            "inputs": self._inputs,
            "tensors": list(zip(self._spec.names, self._spec.shapes, strict=True)) if self._spec else None,
            "config": self._config,
        }
        _write_bytes(partial / "state.json", json.dumps(state, indent=1).encode())
        self._await_clients(partial, patience)
        _write_bytes(partial / "manifest.json", json.dumps(_sums(partial), indent=1).encode())
        final = self._folder / f"round-{server.round:06d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(self._folder)
        self._prune()

    def _await_clients(self, partial: Path, patience: float) -> None:
        wanted = self._comm.world_size if self._stateful else 0
        deadline = time.monotonic() + patience
        while len(list(partial.glob("clients-*.safetensors"))) < wanted:
            if time.monotonic() > deadline:
                raise OSError(f"{partial}: not every rank wrote its clients; do all ranks see this file system?")
            time.sleep(0.01)

    def _prune(self) -> None:
        folders = sorted(self._folder.glob("round-*"))
        best = max(folders, key=lambda f: (_quality(f), f.name))
        for folder in folders[: -self._keep]:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)


def newest(run_folder: Path) -> Saved | None:
    """The newest checkpoint that is whole; says which damaged ones it skipped."""
    return next((found for found in map(_saved, reversed(_folders(run_folder))) if found), None)


def of_round(run_folder: Path, round: int) -> Saved | None:
    """The checkpoint of a round, if it is there and whole."""
    folder = run_folder / "checkpoints" / f"round-{round:06d}"
    return _saved(folder) if folder.exists() else None


def candidates(run_folder: Path, done: int) -> tuple[RatedModel, ...]:
    """What the first ``done`` rounds of a run left of which one may be the best: `exported.BEST` and checkpoints."""
    file = exported(run_folder, BEST)
    kept = [RatedModel(int(path.name.removeprefix("round-")), _quality(path), path) for path in _folders(run_folder)]
    return tuple(c for c in (*((file[0],) if file else ()), *kept) if c.round <= done)


def _folders(run_folder: Path) -> list[Path]:
    return sorted((run_folder / "checkpoints").glob("round-*"))


def _saved(folder: Path) -> Saved | None:
    damage, saved = _damage(folder), None
    if damage is None:
        try:
            saved = _read(folder)
        except ValidationError as error:
            damage = f"{'.'.join(map(str, error.errors()[0]['loc']))} in state.json: {error.errors()[0]['msg']}"
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            damage = reason(error)
    if damage is not None:
        log.warning("%s is damaged (%s) and is skipped", folder, damage)
    return saved


def _read(folder: Path) -> Saved:
    """What the files of a checkpoint say. Raises one of several errors if they say it in another form."""
    state = TypeAdapter(_State).validate_json((folder / "state.json").read_bytes())
    if folder.name != f"round-{state.round:06d}":
        raise ValueError(f"state.json is of round {state.round}")
    entries = sum(math.prod(shape) for _, shape in state.tensors or ())
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if path.name == "server.safetensors" and len(shapes["w"]) != 1:
            raise ValueError(f"w in {path.name} is {shapes['w']}, no vector")
        if path.name == "server.safetensors" and entries and shapes["w"] != [entries]:
            raise ValueError(f"w in {path.name} has {shapes['w'][0]} entries, state.json says {entries}")
        if path.name.startswith("clients-") and not all("/" in name for name in shapes):
            raise ValueError(f"{path.name} does not hold vectors of clients")
    return Saved(folder, **vars(state))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What keeps ``now`` from continuing a run of ``saved`` (dotted keys to values): "key: a there, b here"."""
    keys = [k for k in sorted({*saved, *now}) if saved.get(k) != now.get(k)]
    fixed = [k for k in keys if k in FIXED or (k not in CHANGEABLE and not k.startswith(CHANGEABLE_SECTIONS))]
    return [f"{k} is {saved.get(k)!r} there, {now.get(k)!r} here" for k in fixed]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vector_sha256(w: Tensor) -> str:
    """Hex digest of a flat vector's bytes."""
    return hashlib.sha256(w.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _clients(folder: Path) -> dict[str, Tensor]:
    parts = [load_file(path) for path in sorted(folder.glob("clients-*.safetensors"))]
    return {key: tensor for part in parts for key, tensor in part.items()}


def _sums(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.name != "manifest.json"]
    return {path.name: sha256(path) for path in files}


def _damage(folder: Path) -> str | None:
    try:
        sums = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        wrong = [name for name, expected in sums.items() if sha256(folder / name) != expected]
        wrong += [name for name in ("server.safetensors", "state.json") if name not in sums]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return first_line(error)
    return f"{', '.join(wrong)} changed since it was written" if wrong else None


def _quality(folder: Path) -> float:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return float(quality(state["test_accuracy"], state.get("test_loss")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return -math.inf


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)
