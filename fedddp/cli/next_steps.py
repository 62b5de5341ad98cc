"""The command lines that continue from a run: more rounds, TensorBoard, curves, report, export."""

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from ..launched import OPTIONS
from ..setup.prepared import Prepared
from ..telemetry import Metrics
from .commands import COMMANDS


def resume_command(p: Prepared, folder: Path, *keys: str) -> str:
    """Return the command line that continues the run in ``folder`` on as many ranks, with ``keys`` on top."""
    ranks, options = p.place.world_size, shlex.split(os.environ.get(OPTIONS, ""))
    start = ["launch", *(options or ["-n", str(ranks)])] if ranks > 1 else ["train"]
    return shlex.join([_program(), *start, f"--run.resume={folder}", *keys])


def next_steps(p: Prepared, folder: Path, summary: Metrics) -> list[str]:
    """Return what can be done next with a finished run, a command line each."""
    lines, target = [], summary["rounds_to_target"] is not None
    if not p.config.privacy.target_epsilon:  # that allows no more rounds
        off = ("--evaluate.target=off", "--evaluate.target_accuracy=off") if target else ()
        lines.append(resume_command(p, folder, f"--run.rounds={2 * p.config.run.rounds}", *off))
    to = "onnx" if find_spec("onnxruntime") else "safetensors"
    words = {
        "plot": [str(folder), f"--out={folder / 'curves.png'}"],
        "report": [str(folder)],
        "export": [str(folder), f"--to={to}"],
    }
    return lines + [shlex.join([_program(), name, *words[name]]) for name in words if name in COMMANDS]


def tensorboard_command(runs: Path) -> str:
    """Return the command line that shows the runs below a folder."""
    return shlex.join([_program(), "tensorboard", str(runs)])


def _program() -> str:
    """As it works in the user's shell: by its path where the environment is not activated (make train)."""
    activated = sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix
    return "fedddp" if activated else os.path.relpath(Path(sys.executable).with_name("fedddp"))
