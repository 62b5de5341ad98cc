"""Write checkpoints: (round, server state, client states, configuration), atomic and verified.

``checkpoints/round-000012/`` holds safetensors files, ``state.json`` and a manifest with the SHA-256 of each. It is
written under another name, flushed to disk and renamed, so that a folder of that name is complete; a file damaged
later does not match its sum, and the folder is skipped. When a process is killed, the current round is lost, and the
one before it if that was still being written.
"""

import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..clients import ClientStore
from ..comm import Comm
from ..evaluation.server import Score
from ..flat import FlatSpec
from ..telemetry.beside import Background
from ..types import ServerState
from .durable import WriteError, sync, write_bytes, write_tensors, writing
from .export import Exports, RatedModel
from .own_clients import OwnClients
from .saved import quality_of, sha256
from .segments import Remembered, Segments

log = logging.getLogger("fedddp")

RECORDS = ("metrics.jsonl", "ledger.jsonl")
"""Files of a run folder that have a line per round, written before its checkpoint."""
_Finished = tuple[ServerState, Remembered, dict[str, Tensor], Score | None, RatedModel | None]
"""A finished round: the server's state, the clients', the privacy spent, the score, the best model so far."""


class Checkpoints:
    """Writes checkpoints of one run, in the background: rank 0 the server state, each rank its clients' states.

    Args:
        run_folder, config, comm: of the run.
        every, keep: rounds between checkpoints (0: only on `flush`), and how many of the newest are kept.
        stateful: whether clients have states. Then all ranks must see the same file system.
        done: the round that is resumed; later ones (damaged, or incomplete from a killed attempt) are removed.
        exports: models that are written beside checkpoints for use elsewhere.
        inputs: description of the model's inputs, see `Exports`.
        spec: layout of the model.
        own: where this rank keeps its clients' states, if not in the run folder, which then holds the file's SHA-256.
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
        own: OwnClients | None = None,
    ) -> None:
        self._folder, self._comm = run_folder / "checkpoints", comm
        self._every, self._keep, self._stateful = every, keep, stateful
        self._of_run = {
            "world_size": comm.world_size,
            "inputs": inputs,
            "tensors": list(zip(spec.names, spec.shapes, strict=True)) if spec else None,
            "constants": spec.constants if spec else None,
            "config": dict(config),
        }
        self._exports = exports if comm.rank == 0 else None
        self._own = own if stateful else None
        self._segments = Segments(self._folder, comm.rank)
        self._sums: dict[tuple[int, ...], str] = {}  # SHA-256 of the files of the last checkpoint, see `_summed`
        self._current: _Finished | None = None
        self._background, self._abandoned = Background("checkpoints"), False
        self.recent: deque[ServerState] = deque(maxlen=2 * comm.coordinated * (not stateful))
        """The server's states at the end of the last rounds, where ranks may have to go on from them."""
        if comm.rank == 0:  # the others write after a round
            for leftover in (*self._folder.glob(".round-*"), *self._folder.glob("round-*")):
                if leftover.name.startswith(".") or leftover.name > f"round-{done:06d}":
                    shutil.rmtree(leftover, ignore_errors=True)
        there = (int(folder.name.removeprefix("round-")) for folder in self._folder.glob("round-*"))
        self._begun = self.written = max((t for t in there if t <= done), default=0)  # rounds: begun to write, on disk

    @property
    def run_folder(self) -> Path:
        return self._folder.parent

    def start(self, server: ServerState) -> None:
        """Keep the state that training starts from, as if its round had ended now."""
        self._current = (server, Remembered(), {}, None, None)
        self.recent.append(server)

    def after_round(
        self,
        server: ServerState,
        store: ClientStore,
        score: Score | None,
        *,
        last: bool,
        spent: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep the state of a finished round, and write it when due; the last one is on disk on return.

        ``spent``: the state of the privacy budget, if there is one.
        """
        clients = self._remembered(store)
        best = self._exports.after_round(server.round, server.w, score) if self._exports else None
        self._current = (server, clients, dict(spent or {}), score, best)
        self.recent.append(server)
        if self._every and (last or server.round % self._every == 0):
            self._background.run(self._write, *self._current, 60.0)
            self._begin(server.round, clients)
        if last and self._exports:
            self._background.run(self._exports.at_end, best, server.round, server.w, score)
        if last:
            self.wait()

    def wait(self) -> None:
        """Wait until all begun checkpoints are on disk. Raises WriteError."""
        self._background.wait()

    def abandon(self) -> None:
        """Give up the checkpoint that waits for the files of a lost rank; others are on disk on return."""
        self._abandoned = True
        with suppress(WriteError):
            self.wait()

    def close(self) -> None:
        """End the writing thread once all begun checkpoints are on disk, without waiting for that."""
        self._background.close()

    def flush(self, patience: float = 60.0) -> int:
        """Write the last finished round unless it is written; the number of the last written one, 0 if there is none.

        ``patience``: seconds that rank 0 waits for the other ranks' files.
        """
        self.wait()
        if self._current is not None and self._begun != self._current[0].round:
            self._begin(self._current[0].round, self._current[1])
            self._write(*self._current, patience)
        return self.written

    def _remembered(self, store: ClientStore) -> Remembered:
        """What clients remember; a rank's own file has all of it, so that it tells nobody who took part."""
        if not self._stateful:
            return Remembered()
        return Remembered(store.state_dict()) if self._own else self._segments.after_round(store)

    def _begin(self, round: int, clients: Remembered) -> None:
        self._begun = round
        self._segments.begun(round, clients)

    def _write(
        self,
        server: ServerState,
        clients: Remembered,
        spent: dict[str, Tensor],
        score: Score | None,
        best: RatedModel | None,
        patience: float,
    ) -> None:
        partial = self._folder / f".round-{server.round:06d}"
        before = f"the checkpoint of round {self.written} is whole" if self.written else "there is none before it"
        remedy = f"{before}; free space (a smaller checkpoint.keep needs less), then continue with --run.resume=auto"
        with writing(f"the checkpoint of round {server.round} in {self._folder.parent}", remedy):
            try:
                if self._stateful or self._comm.rank == 0:
                    partial.mkdir(parents=True, exist_ok=True)
                if self._stateful:
                    self._write_clients(partial, server.round, clients)
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
        """Load the states, after the resumed round, of the clients that are ``mine``, before anything is written."""
        if self._stateful and self.written:
            folder = self._folder / f"round-{self.written:06d}"
            digest = folder / f"{self._name}.sha256"
            if self._own and digest.is_file():
                clients = self._own.read(self.written, digest.read_text(encoding="utf-8"))
            else:
                parts = [load_file(path) for path in sorted(folder.glob("clients-*.safetensors"))]
                clients = {key: tensor for part in parts for key, tensor in part.items()}
            store.load_state_dict(clients, mine)

    @property
    def _name(self) -> str:
        return f"clients-{self._comm.rank:05d}"

    def _write_clients(self, partial: Path, round: int, clients: Remembered) -> None:
        if self._own is None:
            self._segments.link(clients.base, partial)
            write_tensors(partial / f"{self._name}.safetensors", clients.states)
            return
        digest = self._own.write(round, clients.states)
        write_bytes(partial / f"{self._name}.sha256", digest.encode())
        # An earlier checkpoint is under its first name or its last one; in this order it is not missed in between.
        names = (".round-{:06d}", "round-{:06d}")
        self._own.prune(lambda t: any((self._folder / name.format(t)).exists() for name in names))

    def _finish(self, partial: Path, server: ServerState, score: Score | None, patience: float) -> None:
        write_tensors(partial / "server.safetensors", {"w": server.w, **server.extra})
        state = {
            "round": server.round,
            "test_accuracy": score.accuracy if score else None,
            "test_loss": score.loss if score and math.isfinite(score.loss) else None,
            "quality": score.quality if score and math.isfinite(score.quality) else None,
            "num_trainable": server.num_trainable,
            **self._of_run,
        }
        write_bytes(partial / "state.json", json.dumps(state, indent=1).encode())
        self._await_clients(partial, patience)
        sums = self._summed(partial)
        write_bytes(partial / "manifest.json", json.dumps(sums, indent=1).encode())
        final = self._folder / f"round-{server.round:06d}"
        shutil.rmtree(final, ignore_errors=True)
        self._comm.faults.reach("checkpoint")
        for name in RECORDS:  # after a power failure no checkpoint is of a round that they lack
            if (self._folder.parent / name).exists():
                sync(self._folder.parent / name)
        sync(self._folder.parent)
        partial.rename(final)
        sync(self._folder)
        self._prune()

    def _summed(self, folder: Path) -> dict[str, str]:
        """The SHA-256 of each file by its name; that of a link is known from the checkpoint before."""
        files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.name != "manifest.json"]
        same = {path: (s.st_ino, s.st_mtime_ns, s.st_size) for path in files for s in [path.stat()]}
        self._sums = {key: self._sums.get(key) or sha256(path) for path, key in same.items()}
        return {path.name: self._sums[key] for path, key in same.items()}

    def _await_clients(self, partial: Path, patience: float) -> None:
        wanted = self._comm.world_size if self._stateful else 0
        deadline = time.monotonic() + patience
        while len(list(partial.glob("clients-[0-9][0-9][0-9][0-9][0-9].s*"))) < wanted:  # a rank's last file
            if self._abandoned or time.monotonic() > deadline:
                raise OSError(f"{partial}: not every rank wrote its clients; do all ranks see this file system?")
            time.sleep(0.01)

    def _prune(self) -> None:
        folders = sorted(self._folder.glob("round-*"))
        best = max(folders, key=lambda f: (quality_of(f), f.name))
        for folder in folders[: -self._keep]:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)
