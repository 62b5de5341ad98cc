"""A benchmark's own ranks: the program starts itself again, as several, and reads what rank 0 of them found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOUND = "found.json"


def on_ranks(count: int, module: str) -> Any:
    """What rank 0 hands back, as JSON reads it, of ``count`` ranks that run ``module`` with the words of this program.

    They have one thread each, and ``--work=FOLDER`` behind the words, by which they know that they are ranks and where
    to `hand_back`. The folder is gone afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="fedddp-") as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, "-m", module, *sys.argv[1:], f"--work={folder}"], env=env, check=True)
        return json.loads((Path(folder) / FOUND).read_text())


def hand_back(found: Any, work: str) -> None:
    """To be called by each rank at its end, with the folder it was given; what rank 0 found is taken."""
    if os.environ["RANK"] == "0":
        (Path(work) / FOUND).write_text(json.dumps(found))
