"""fedddp's round against the floor: a bare PyTorch loop that does the same SGD steps with nothing around it.

    python -m benchmarks.floor [--ranks 2] [--repeats 5] [--model cnn] [--data.root=...]

Both run interleaved in the same processes, on the same clients, batches and initial model. The bare loop gets its
batches ready-made and normalised; fedddp's training time includes making them. Medians of the slowest rank are
compared. Default work: 10 clients of 600 examples of MNIST (or of the embedded digits), E=1, B=10, lr 0.1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

from fedddp.comm import Place
from fedddp.config import build
from fedddp.data import plan
from fedddp.experiment import Experiment, connect
from fedddp.federation import federate
from fedddp.preparation import prepare, resolve
from fedddp.sampling import assign


def bare(experiment: Experiment, round: int, lr: float, batch_size: int) -> float:
    """The seconds of this rank's clients in a plain loop."""
    f = experiment.federation
    clients = assign(f.sampler.cohort(round), f.comm.rank, f.comm.world_size)
    work = []
    for k in clients:
        x, y = f.trainer.data.examples(k)
        order = plan([len(y)], (k,), round, epochs=1, batch_size=batch_size, seed=f.seed)
        rows = [i[m] for i, m in zip(order.index[0], order.mask[0], strict=True)]
        work.append([(f.trainer.data.normalize(x[i]), y[i]) for i in rows])
    module = f.task.model(f.seed)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    f.comm.barrier("bare")
    began = time.perf_counter()
    for batches in work:
        module.load_state_dict(start)
        optimizer = torch.optim.SGD(module.parameters(), lr=lr)
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
    return time.perf_counter() - began


def measure(args: argparse.Namespace, folder: str) -> None:
    """What each rank does; rank 0 prints."""
    data = {"name": "mnist", "root": args.root} if args.root else {"name": "mnist-mini"}
    config = build(
        {
            "run": {"threads": 1, "dir": folder, "rounds": args.repeats + 1},
            "data": {**data, "partition": {"num_clients": 100 if args.root else 16}},
            "cohort": {"size": 10},
            "model": {"name": args.model},
            "checkpoint": {"every": 0},
            "telemetry": {"tensorboard": False, "progress": "off"},
        }
    )
    place = Place.from_env()
    experiment = connect(prepare(resolve(config, place), place))
    f, server = experiment.federation, experiment.server
    floor: list[float] = []
    for t in range(args.repeats + 1):
        seconds = torch.zeros(place.world_size)
        seconds[place.rank] = bare(experiment, t, 0.1, 10)
        floor.append(float(f.comm.all_reduce(seconds, "bare").max()))
        server = federate(f.until(t + 1), server)
    f.comm.close()
    if place.rank == 0:
        history = f.telemetry.history[1:]  # the first repeat warms up
        report(floor[1:], history, place.world_size)


def report(floor: list[float], history: list[dict], ranks: int) -> None:
    """The table."""
    ratios = [m["seconds_train"] / b for m, b in zip(history, floor, strict=True)]
    share = [m["seconds_aggregate"] / (m["seconds_train"] + m["seconds_aggregate"]) for m in history]
    print(
        f"{ranks} rank(s) of {torch.get_num_threads()} thread, torch {torch.__version__}, {len(floor)} repeats, medians"
    )
    print(f"  bare loop        {statistics.median(floor):7.3f} s a round")
    print(f"  fedddp training  {statistics.median(m['seconds_train'] for m in history):7.3f} s a round")
    print(f"  ratio            {statistics.median(ratios):7.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"  aggregation      {statistics.median(m['seconds_aggregate'] for m in history):7.3f} s", end="")
    print(f"   {statistics.median(share):.2%} of the round (without evaluation)")


def main() -> None:
    parser = argparse.ArgumentParser(description="fedddp's round against a bare PyTorch loop")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--data.root", dest="root", help="full MNIST in torchvision's layout; without: embedded digits")
    args = parser.parse_args()
    if "RANK" in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, folder)
        return
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={args.ranks}",
        "-m",
        "benchmarks.floor",
    ]
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    sys.exit(subprocess.run([*command, *sys.argv[1:]], env=env).returncode)


if __name__ == "__main__":
    main()
