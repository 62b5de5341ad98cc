"""Show runs in TensorBoard, each by its own name."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError

EVERY = 2.0
"""Seconds between looks for new runs."""
PAGES = "tensorboard"


def run(args: Namespace) -> int:
    """Start TensorBoard on the runs in ``args.folders``; see `fedddp.cli.options.board`. Its exit code."""
    if not any(found(args.folders).values()):
        places = " or ".join(map(str, args.folders))
        raise UsageError(
            f"{places}: holds no run with a folder {PAGES}/; name run folders, or the folder that they are in"
        )
    stopped = threading.Event()  # no exception: while the server starts, it would be left behind
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="fedddp-tensorboard-") as page:
        link(args.folders, Path(page))
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            f"--logdir={page}",
            f"--port={args.port}",
            f"--host={args.host}",
        ]
        server = subprocess.Popen(command)
        try:
            while not stopped.is_set():
                try:
                    return server.wait(EVERY)
                except subprocess.TimeoutExpired:
                    link(args.folders, Path(page))
            return 0
        finally:
            server.terminate()
            server.wait()


def found(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of event files below ``folders`` by the names of their runs; those of a sweep stand below its name.

    TensorBoard would call a run by the folder of its files, ``NAME/tensorboard``.
    """
    runs: dict[str, Path] = {}
    for folder in folders:
        for pages in sorted(page for depth in ("", "*/", "*/*/") for page in folder.glob(f"{depth}{PAGES}")):
            if pages.is_dir():
                own = pages.parent.relative_to(folder)
                name = str(own) if own.parts else folder.resolve().name
                runs[name if name not in runs else f"{folder.resolve().name}/{name}"] = pages
    return runs


def link(folders: Sequence[Path], page: Path) -> None:
    """Make ``page`` a folder of links to what `found` finds, in addition to those that are there."""
    for name, pages in found(folders).items():
        if not (page / name).is_symlink():
            (page / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(pages.resolve(), page / name)
