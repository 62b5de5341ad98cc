"""Keep client states in a folder that only their own rank reads; checkpoints hold the SHA-256 of each file."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..errors import UsageError
from .durable import write_tensors
from .saved import sha256


@dataclass(frozen=True)
class OwnClients:
    """The client states of one rank of one run, a file per round.

    A client's state may contain its update: with SCAFFOLD, -K lr c_k is what secure aggregation hides. So under secure
    aggregation and client-level privacy it is not in the run folder, which rank 0 and others read.

    Attributes:
        root: ``checkpoint.clients_dir`` of this rank, made with mode 0700.
        run_folder: the run folder, whose path tells the runs in ``root`` apart.
        rank: this rank.
    """

    root: Path
    run_folder: Path
    rank: int

    @property
    def folder(self) -> Path:
        """The folder of this run's and rank's files."""
        path = self.run_folder.absolute()
        digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:8]
        return self.root / f"{path.name}-{digest}" / f"rank-{self.rank:05d}"

    def write(self, round: int, clients: dict[str, Tensor]) -> str:
        """Write the states after ``round``, and return the file's SHA-256. Raises OSError."""
        for folder in (self.root, self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # random: else an equal hash in the run folder would tell that none of this rank's clients was drawn
        write_tensors(self._file(round), clients, {"salt": secrets.token_hex()})
        return sha256(self._file(round))

    def read(self, round: int, digest: str) -> dict[str, Tensor]:
        """Return the states after ``round``. Raises UsageError if the file is not the one that was written."""
        file = self._file(round)
        found = sha256(file) if file.is_file() else None
        if found != digest:
            problem = "is missing" if found is None else "is not the file that the checkpoint was written with"
            raise UsageError(
                f"checkpoint.clients_dir={str(self.root)!r}: {file} {problem}: it holds the states of this rank's "
                "clients; name the folder with which the run was started, or start a new run with --run.resume=never",
                code="clients-dir-file",
            )
        return load_file(file)

    def prune(self, stays: Callable[[int], bool]) -> None:
        """Remove the files of rounds that no checkpoint needs."""
        for file in self.folder.glob("round-*.safetensors"):
            if not stays(int(file.stem.removeprefix("round-"))):
                file.unlink(missing_ok=True)

    def _file(self, round: int) -> Path:
        return self.folder / f"round-{round:06d}.safetensors"
