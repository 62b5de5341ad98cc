"""Seconds and bytes of a checkpoint of client states: of those that changed, and of all.

python -m benchmarks.client_states --clients=100000 --dim=1425 --cohort=100
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from fedddp.checkpoints import segments
from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.clients import ClientStore
from fedddp.comm import Comm
from fedddp.flat import FlatSpec
from fedddp.types import ServerState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("clients", 100_000), ("dim", 1425), ("cohort", 100), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for title, most in (("all states in each checkpoint", 0), ("states that changed", segments.MOST)):
        segments.MOST = most
        with tempfile.TemporaryDirectory(dir=".") as folder:
            measure(Path(folder), title, args)


def measure(folder: Path, title: str, args: argparse.Namespace) -> None:
    """Print the seconds of each round's checkpoint, and the bytes it adds to the disk."""
    spec = FlatSpec.of(torch.nn.Linear(args.dim - 1, 1))
    store, written = ClientStore(), Checkpoints(folder, {}, Comm.alone(), every=1, keep=3, stateful=True)
    for t in range(1, args.rounds + 1):
        ids = range(args.clients) if t == 1 else torch.randperm(args.clients)[: args.cohort].tolist()
        store.get([0], {"c": torch.zeros(1, args.dim)})
        store.put(list(ids), {"c": torch.randn(len(ids), args.dim)}, range(len(ids)))
        store.commit()
        began = time.perf_counter()
        written.after_round(ServerState(torch.zeros(args.dim), spec, {}, t), store, None, last=False)
        begun = time.perf_counter() - began
        written.wait()
        files = list((folder / "checkpoints" / f"round-{t:06d}").iterdir())
        size = sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
        print(
            f"{title}: round {t}: {begun:.3f} s in the round, {time.perf_counter() - began:.2f} s until on disk, "
            f"{size / 1e6:.1f} MB written in {len(files)} files",
            flush=True,
        )


if __name__ == "__main__":
    main()
