"""Disturb runs that go on without lost ranks, and compare each model with the undisturbed one.

    python -m benchmarks.survivors --runs=60

Each run has three ranks, which are forked from one process that has torch loaded, and two faults, drawn from
its number: a rank is killed, stopped (SIGSTOP) or hangs at a drawn point of a drawn round. Some runs start lost ranks
again. A run is right if it exits with 0, has each round once in ``metrics.jsonl`` and in the commit log, leaves no
process behind, and its model is, bit for bit, the one of a single process that nothing disturbs.

With --cost=N it measures what a round costs more under the coordinating launcher: N pairs of runs without faults, one
with --min-ranks and one without, take turns; per pair the median round after the second is compared.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fedddp
from fedddp.cli.sweep.worker import Waited
from fedddp.comm.coordinator import Coordinator
from fedddp.config.words import parse
from fedddp.launched import LAUNCHER

ROUNDS = 8
KEYS = [
    *("--data.name=synthetic", "--data.args={num_train=600, num_test=60}", "--data.partition.num_clients=6"),
    *("--model.name=mlp", "--model.hidden=16", "--aggregation.sum=exact", "--client.optimizer.lr=0.05"),
    *("--telemetry.tensorboard=false", "--telemetry.progress=off", "--run.device=cpu", "--run.threads=1"),
]
KINDS = {
    "fedavg": ["--algorithm.server_optimizer.momentum=0.5", "--checkpoint.every=100"],
    "scaffold": ["--algorithm.name=scaffold"],
}
POINTS = ("train", "before aggregate", "after aggregate", "evaluate", "before evaluate", "after evaluate", "checkpoint")


def _rank(words: list[str], env: dict[str, str], log: str) -> None:
    os.setsid()
    os.environ.update(env)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    from fedddp import launched
    from fedddp.train import main

    launched.parent = os.getppid()
    os._exit(main(words))


class _Process(Waited):
    """A forked rank with the part of ``subprocess.Popen`` that `Started` uses."""

    def __init__(self, process: BaseProcess) -> None:
        super().__init__(process, "a rank")
        self.pid = process.pid


class Forking(Coordinator):
    """A coordinator that forks its ranks from a process with torch loaded: a start costs 0.2 s instead of seconds."""

    context = multiprocessing.get_context("forkserver")

    def __init__(self, words: list[str], folder: Path, faults: str, **limits: float) -> None:
        super().__init__(words, 3, f"trial {folder}", **limits)  # pyright: ignore[reportArgumentType]
        self._log, self._faults = str(folder / "log"), faults

    def _spawn(self, env: dict[str, str]) -> Any:
        own = {"FEDDDP_FAULT": self._faults, "OMP_NUM_THREADS": "1"}
        del env[LAUNCHER]  # a fork's parent is the server that it was forked from
        process = self.context.Process(target=_rank, args=(list(self._command), env | own, self._log))
        process.start()
        return _Process(process)


def drawn(seed: int) -> tuple[str, str, int, int]:
    """The kind of a run, its faults, how many ranks it needs, and how many are started again."""
    rng = random.Random(seed)
    faults = []
    for attempt, round in enumerate(sorted(rng.sample(range(1, ROUNDS + 1), 2))):
        how = rng.choice(["kill", "kill", "kill", "stop", "hang"])
        point, rank = rng.choice(POINTS), rng.randrange(3 - attempt)
        faults.append(f"{how}@round={round},rank={rank},point={point},attempt={attempt}")
    restarts = rng.choice([0, 0, 2])
    return rng.choice(list(KINDS)), ";".join(faults), 3 if restarts and rng.random() < 0.5 else 1, restarts


def model(kind: str, folder: Path) -> str:
    """The model of a single process that nothing disturbs."""
    words = [*KEYS, *KINDS[kind], f"--run.rounds={ROUNDS}", f"--run.dir={folder}", f"--run.name={kind}"]
    return fedddp.run(parse(words).overrides).summary["model_sha256"]


def disturbed(seed: int, expected: dict[str, str], folder: Path) -> dict[str, object]:
    """One run; what was wrong with it, if anything was."""
    kind, faults, least, restarts = drawn(seed)
    words = [*KEYS, *KINDS[kind], f"--run.rounds={ROUNDS}", f"--run.dir={folder}", "--run.name=run", "--run.timeout=5"]
    coordinator = Forking(words, folder, faults, least=least, restarts=restarts, timeout=5.0)
    began = time.monotonic()
    failed = coordinator.run()
    wrong, run = [], folder / "run"
    if failed:
        wrong.append(f"ended with {failed}")
    else:
        summary = json.loads((run / "summary.json").read_text())
        commits = [json.loads(line) for line in (run / "commits.jsonl").read_text().splitlines()]
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for name, lines in (("commits", commits), ("metrics", metrics)):
            if [line["round"] for line in lines] != list(range(1, ROUNDS + 1)):
                wrong.append(f"{name}: rounds {[line['round'] for line in lines]}")
        if any(len(line["clients"]) != 6 for line in commits):
            wrong.append("a client is missing")
        if summary["model_sha256"] != expected[kind]:
            wrong.append("another model")
        if json.loads((run / "status.json").read_text())["state"] != "done":
            wrong.append("status")
    if alive := [m.name for m in coordinator._started if m.process.poll() is None]:
        wrong.append(f"alive: {alive}")
    lost = sum(m.process.returncode not in (0, None) for m in coordinator._started)
    seconds = round(time.monotonic() - began, 1)
    made = {"seed": seed, "kind": kind, "faults": faults, "least": least, "restarts": restarts, "lost": lost}
    return made | {"epochs": coordinator._epoch, "seconds": seconds, "wrong": wrong}


def cost(pairs: int) -> None:
    """Compare rounds with and without the coordinating launcher."""
    medians: dict[str, list[float]] = {"plain": [], "min-ranks": []}
    for pair in range(pairs):
        for name, more in sorted({"plain": [], "min-ranks": ["--min-ranks=1"]}.items(), reverse=bool(pair % 2)):
            with tempfile.TemporaryDirectory() as folder:
                words = [*KEYS, *KINDS["fedavg"], "--run.rounds=60", f"--run.dir={folder}", "--run.name=run"]
                command = [sys.executable, "-m", "fedddp", "launch", "-n", "3", *more, *words]
                subprocess.run(command, check=True, capture_output=True)
                lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
            medians[name].append(1000 * statistics.median(json.loads(line)["seconds"] for line in lines[2:]))
        print(*(f"{name} {values[-1]:.2f} ms" for name, values in medians.items()), sep=", ", flush=True)
    print(*(f"median {name} {statistics.median(values):.2f} ms" for name, values in medians.items()), sep=", ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--cost", type=int, default=0, help="pairs of runs to measure instead")
    parser.add_argument("--out", type=Path, help="a line of JSON per run")
    args = parser.parse_args()
    if args.cost:
        cost(args.cost)
        return 0
    Forking.context.set_forkserver_preload(["torch", "torch.distributed", "fedddp.setup.assemble", "fedddp.train"])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        expected = {kind: model(kind, Path(folder)) for kind in KINDS}
        for seed in range(args.first, args.first + args.runs):
            own = Path(folder) / str(seed)
            own.mkdir()
            results.append(disturbed(seed, expected, own))
            print(json.dumps(results[-1]), flush=True)
            if results[-1]["wrong"]:
                print((own / "log").read_text(), flush=True)
            if args.out:
                args.out.write_text("".join(json.dumps(line) + "\n" for line in results))
    bad = [line for line in results if line["wrong"]]
    print(f"{len(results)} runs, {sum(line['lost'] for line in results)} ranks lost, {len(bad)} wrong")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
