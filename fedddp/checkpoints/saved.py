"""Read checkpoints: find the newest complete one, and the differences that prevent a run from continuing it."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UsageError, first_line, reason
from ..flat import FlatSpec
from .export import BEST, LAST, RatedModel, exported

log = logging.getLogger("fedddp")

SUMS = {LAST: "weights_sha256", BEST: "best_weights_sha256"}
"""The key of ``summary.json`` with the SHA-256 of each exported file."""

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
    "privacy.equal_work",
    "privacy.trust_network",
    "privacy.target_epsilon",
    "privacy.secure_aggregation.key",
    "privacy.secure_aggregation.min_clients",
    "privacy.secure_aggregation.roster",  # fewer parties need another one
)
CHANGEABLE_SECTIONS = (
    *("data.root", "data.download", "data.placement", "evaluate.", "checkpoint.", "telemetry.", "privacy.account."),
)
"""Keys that may differ on resume: they do not affect what is learned."""
FIXED = ("evaluate.holdout",)
"""Keys of these sections that may not differ."""


@dataclass(frozen=True)
class _State:
    """``state.json``; the last three are absent in those of earlier versions.

    ``inputs``: description of the model's inputs, see `exported`; ``tensors``: names and shapes of ``w``, in its order;
    ``constants``: see `FlatSpec`.
    """

    round: Annotated[int, Field(ge=1, le=10**6, strict=True)]
    num_trainable: Annotated[int, Field(ge=1, le=2**62, strict=True)]
    test_accuracy: Annotated[float, Field(strict=True)] | None
    config: dict[str, Any]
    inputs: dict[str, Any] | None = None
    tensors: list[tuple[str, list[int]]] | None = None
    constants: str | None = None


@dataclass(frozen=True)
class Saved(_State):
    """A complete checkpoint: the content of its ``state.json``, and its folder."""

    folder: Path = field(kw_only=True)

    def unlike(self, spec: FlatSpec) -> str | None:
        """The first difference between the model of ``spec`` and the saved one; None if there is none.

        Without names, only the numbers of entries can be compared.
        """
        own = [(name, list(shape)) for name, shape in zip(spec.names, spec.shapes, strict=True)]
        for i, (saved, now) in enumerate(zip_longest(self.tensors or own, own), start=1):
            if saved != now:
                there, mine = (f"{one[0]} {one[1]}" if one else "nothing" for one in (saved, now))
                return f"tensor {i} is {there} there, {mine} here"
        dim = spec.dim if self.tensors else len(self.server()[0])
        if (dim, self.num_trainable) != (spec.dim, spec.num_trainable):
            there = f"{dim} numbers, {self.num_trainable} of them trainable, there"
            return f"{there}, {spec.dim} and {spec.num_trainable} here"
        if self.constants is not None and self.constants != spec.constants:
            return "its frozen parameters or constant buffers have other values there (model.weights, run.seed)"
        return None

    @property
    def kept_apart(self) -> int:
        """The number of ranks that keep their clients' states in a folder of their own, see `OwnClients`."""
        return len(list(self.folder.glob("clients-*.sha256")))

    def server(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The server state, on CPU."""
        tensors = load_file(self.folder / "server.safetensors")
        w = tensors.pop("w")
        return w, tensors

    def client(self, k: int) -> dict[str, Tensor]:
        """What client ``k`` and all clients together remember, see `ClientStore`; nothing if ``k`` took no part yet.

        Raises:
            UsageError: the ranks keep their clients' states elsewhere.
        """
        if self.kept_apart:
            raise UsageError(
                f"client={k}: the states of clients are in checkpoint.clients_dir of their own ranks, not in the run "
                "folder; leave client out",
                code="clients-apart",
            )
        state = {}
        for path in sorted(self.folder.glob("clients-*.safetensors")):
            with safe_open(path, "pt") as file:
                mine = [name for name in file.keys() if name.startswith((f"{k}/", "all/"))]  # noqa: SIM118
                state |= {name: file.get_tensor(name) for name in mine}
        return state

    def budget(self) -> dict[str, Tensor]:
        """The state of the privacy budget; empty without one."""
        path = self.folder / "budget.safetensors"
        return load_file(path) if path.exists() else {}


def newest(run_folder: Path) -> Saved | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning."""
    return next((found for found in map(_saved, reversed(_folders(run_folder))) if found), None)


def of_round(run_folder: Path, round: int) -> Saved | None:
    """The checkpoint of a round, if it exists and is complete."""
    folder = run_folder / "checkpoints" / f"round-{round:06d}"
    return _saved(folder) if folder.exists() else None


def candidates(run_folder: Path, done: int) -> tuple[RatedModel, ...]:
    """The models of the first ``done`` rounds of a run that may be the best: `export.BEST` and checkpoints."""
    file = exported(run_folder, BEST)
    kept = [RatedModel(int(path.name.removeprefix("round-")), quality_of(path), path) for path in _folders(run_folder)]
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
    """Read the files of a checkpoint. Raises one of several errors if they have another form."""
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
    return Saved(folder=folder, **vars(state))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences that prevent ``now`` from continuing ``saved`` (dotted keys to values): "key is a there, b here"."""
    there, here = fixed(saved), fixed(now)
    keys = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
    return [f"{k} is {there.get(k)!r} there, {here.get(k)!r} here" for k in keys]


def fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration (dotted keys to values) that must not differ on resume."""
    return {k: v for k, v in config.items() if k in FIXED or not (k in CHANGEABLE or k.startswith(CHANGEABLE_SECTIONS))}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def exported_sums(run_folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each exported file that is there, by its key in ``summary.json``."""
    return {key: sha256(path) for name, key in SUMS.items() if (path := run_folder / name).is_file()}


def changed(run_folder: Path, file: RatedModel) -> bool:
    """Return whether an exported file is not the one that the run's ``summary.json`` has the SHA-256 of.

    False without a summary, and for a round after the last one that the summary knows of (a run that goes on).
    """
    try:
        summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
        expected = summary.get(SUMS[file.path.name]) if file.round <= summary["rounds"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return expected is not None and sha256(file.path) != expected


def vector_sha256(w: Tensor) -> str:
    """Hex digest of a flat vector's bytes."""
    return hashlib.sha256(w.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def _damage(folder: Path) -> str | None:
    try:
        sums = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        wrong = [name for name, expected in sums.items() if sha256(folder / name) != expected]
        wrong += [name for name in ("server.safetensors", "state.json") if name not in sums]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return first_line(error)
    return f"{', '.join(wrong)} changed since it was written" if wrong else None


def quality_of(folder: Path) -> float:
    """The `Score.quality` of the model in a checkpoint, -inf if unknown."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        accuracy, loss = state["test_accuracy"], state.get("test_loss")
        older = accuracy if accuracy is not None else -math.inf if loss is None else -loss
        worth = state.get("quality", older)
        return -math.inf if worth is None else float(worth)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return -math.inf
