"""One rank of the demonstration's runs: the real program, with a recorder at the door to the collectives.

    torchrun --nproc_per_node=3 -m examples.privacy.record --out=FOLDER [--seed=0] [--model=mlp] [--only plain ...]

Each rank writes FOLDER/<scenario>/rank<r>.safetensors: ``handed``, the tensor that it handed to the round's collective,
byte for byte; ``neighbour``, the stretch of it that gloo's ring sends to the rank before, which begins at ``offset``;
``before`` and ``after [D]``, the model that every rank has before and after the round; and ``x [n, C, H, W]`` with
``y [n]``, the rank's own digits, against which an attack is judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.privacy.attacks.wire import received_by_neighbour
from examples.privacy.scenarios import SCENARIOS, Scenario
from fedddp.comm import Comm, Place, interrupt
from fedddp.config import build, parse
from fedddp.federation import federate
from fedddp.registry.choice import user_path
from fedddp.setup.assemble import connect
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from fedddp.telemetry import lasting_output, log_to_stderr


@lasting_output()
def main() -> int:
    """Go through all scenarios; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.privacy.record")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the recordings")
    parser.add_argument("--seed", type=int, default=0, help="of digits, model and batches [0]")
    parser.add_argument("--model", default="mlp", help="its name [mlp]")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=[*SCENARIOS], help="some of the scenarios")
    args = parser.parse_args()
    place = Place.from_env()
    log_to_stderr(place.rank, place.world_size)
    try:
        with interrupt.handled():
            for name in args.only:
                _record(SCENARIOS[name], place, args.seed, args.out, args.model)
    except BaseException:
        traceback.print_exc()
        interrupt.leave(1)  # not through the destructors of a process group that others may still wait in
    return 0


def _record(scenario: Scenario, place: Place, seed: int, out: Path, model: str) -> None:
    place = dataclasses.replace(place, job=f"{place.job or place.launch}/{scenario.name}")  # a process group of its own
    words = scenario.words(seed, str(out / "runs"), model)
    config = resolve(build(*parse(words).layers), place)
    prepared = prepare(config, place)
    comm = Comm.connect(place, prepared.device, backend=config.run.backend, timeout=config.run.timeout)
    door = _Door(prepared.spec.dim)
    comm.watch = door
    experiment = connect(prepared, comm=comm)
    before = experiment.server.w.clone()
    after = federate(experiment.federation, experiment.server).w
    experiment.close()
    comm.close()

    piece, neighbour = received_by_neighbour(door.handed, place.rank, place.world_size)
    x, y = prepared.data.examples(place.rank)
    folder = out / scenario.name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "handed": door.handed,
        "neighbour": neighbour.clone(),
        "offset": torch.tensor([piece.start]),
        "before": before,
        "after": after,
        "x": x,
        "y": y,
    }
    save_file(
        {name: t.contiguous() for name, t in tensors.items()},
        folder / f"rank{place.rank}.safetensors",
        {"words": " ".join(words), "epsilon": json.dumps(_epsilon(out / "runs" / scenario.name))},
    )


class _Door:
    """Keeps the last update that went out: what is as long as the model and not the model itself."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.handed = torch.empty(0)

    def __call__(self, purpose: str, x: Tensor) -> None:
        if x.numel() >= self._dim and purpose != "distribute the model":
            self.handed = x.detach().cpu().clone()  # the collective overwrites it


def _epsilon(run: Path) -> float | None:
    """What the run says it spent; its folder is written by rank 0."""
    try:
        return json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]).get("epsilon")
    except (OSError, IndexError):
        return None


if __name__ == "__main__":
    sys.exit(main())
