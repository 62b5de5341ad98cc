"""What a run leaves on disk: its folder, checkpoints, exported weights, the privacy that was spent."""

from .checkpoint import Checkpoints
from .export import Exports, named
from .run_folder import SPENT, RunFolder
from .saved import Saved, candidates, newest, vector_sha256
from .spend_file import SpendFile

__all__ = [
    "SPENT",
    "Checkpoints",
    "Exports",
    "RunFolder",
    "Saved",
    "SpendFile",
    "candidates",
    "named",
    "newest",
    "vector_sha256",
]
