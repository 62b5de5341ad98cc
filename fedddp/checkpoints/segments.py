"""What clients remember, checkpoint after checkpoint: a file of the states that changed, and links to the files before.

``clients-00003.safetensors`` is rank 3's newest file. Those of earlier checkpoints lie beside it as hard links, with
their round in the name (``clients-00003.000012.safetensors``), so that a checkpoint is complete by itself, and what is
the same in two checkpoints takes its space once. Read in the order of names, a later state replaces an earlier one.
From time to time all states are written into one file.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..clients import ClientStore

MOST = 64
"""Number of files per rank after which all states are written into one."""


@dataclass(frozen=True)
class Remembered:
    """The client states of a round that a checkpoint of it writes: those that changed after that of round ``base``.

    Attributes:
        states: the tensors, see `ClientStore.state_dict`.
        count: the number of clients.
        base: the round of the checkpoint before, of which the other states are; 0 where all states are written.
    """

    states: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    base: int = 0


class Segments:
    """The files with the client states of one rank in the checkpoints below ``folder``."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._name = folder, f"clients-{rank:05d}"
        self._base = self._files = self._written = 0
        self._changed: set[int] = set()

    def after_round(self, store: ClientStore) -> Remembered:
        """Return what a checkpoint of the round that ``store`` has committed would write."""
        self._changed |= store.committed
        seen = len(store.touched)
        if not self._base or self._files >= MOST or self._written + len(self._changed) >= 2 * seen:
            return Remembered(store.state_dict(), seen)
        return Remembered(store.state_dict(self._changed), len(self._changed), self._base)

    def begun(self, round: int, of: Remembered) -> None:
        """Record that the checkpoint of ``round`` is being written with the states ``of``."""
        self._files, self._written = (self._files + 1, self._written + of.count) if of.base else (1, of.count)
        self._base = round
        self._changed = set()

    def link(self, base: int, into: Path) -> None:
        """Link the files of the checkpoint of round ``base``, if there is one, into the folder of another.

        Raises OSError, also where that checkpoint is gone.
        """
        files = self._of(base) if base else ()
        if base and not files:
            raise OSError(f"the checkpoint of round {base}, which holds the states of other clients, is gone")
        for path in files:
            number = path.name.removeprefix(self._name).removesuffix(".safetensors") or f".{base:06d}"
            to = into / f"{self._name}{number}.safetensors"
            try:
                os.link(path, to)
            except FileExistsError:  # of an attempt that was cut short
                pass
            except OSError:  # a file system without hard links
                shutil.copy2(path, to)

    def _of(self, round: int) -> Sequence[Path]:
        """The files of a checkpoint, which rank 0 may give its last name at any moment."""
        names = (f"round-{round:06d}", f".round-{round:06d}", f"round-{round:06d}")
        found = (sorted((self._folder / name).glob(f"{self._name}*.safetensors")) for name in names)
        return next(filter(None, found), ())
