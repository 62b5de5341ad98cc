"""The configurations in the package, by name: ``mnist/fedavg_e5`` is configs/mnist/fedavg_e5.toml."""

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "configs"


def shipped() -> dict[str, Path]:
    """The names and files, in alphabetical order."""
    files = sorted(FOLDER.glob("*/*.toml"))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}


def located(word: str) -> Path:
    """The file that a word of a command line names: one of the user's, else the one in the package."""
    path = os.path.expanduser(word)
    return Path(path) if os.path.exists(path) else shipped().get(word.removesuffix(".toml"), Path(path))


def title(path: Path) -> str:
    """The first line of a configuration's header."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
