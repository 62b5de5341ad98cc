"""Adapters of many clients on one copy of a language model: clients together against one by one, and each alone.

    python -m benchmarks.adapters FILE.toml [--section.key=value ...] [--measure=alone]

Prints JSON, on Linux. By default: tokens per second and peak memory of one round, of all clients of a configuration at
once and, in another process, one by one. With ``--measure=alone``: the loss on the whole test set of the model that
training starts from, and of models that each client trains by itself, as long as the configuration has rounds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fedddp.comm import Place
from fedddp.config import build, parse
from fedddp.data.targets import IGNORED
from fedddp.evaluation.server import Scorer
from fedddp.setup.load import prepare
from fedddp.setup.prepared import Prepared
from fedddp.setup.resolve import resolve

HOW = ("together", "one_by_one", "alone")


def main() -> None:
    """Measure what the command line asks for."""
    words = [word for word in sys.argv[1:] if not word.startswith("--measure=")]
    asked = [word.partition("=")[2] for word in sys.argv[1:] if word not in words]
    if asked:
        run = _prepared(words, "sequential" if asked[0] == "one_by_one" else "vectorized")
        print(json.dumps(_losses(run) if asked[0] == "alone" else _round(run)))
        return
    command, env = [sys.executable, "-m", "benchmarks.adapters", *words], {**os.environ, "OMP_NUM_THREADS": "1"}
    for how in HOW[:2]:
        done = subprocess.run([*command, f"--measure={how}"], env=env, stdout=subprocess.PIPE, check=True)
        print(how, done.stdout.decode().splitlines()[-1])


def _prepared(words: list[str], execution: str) -> Prepared:
    """The run that the words describe, with all clients at once or one after the other."""
    every = {"client": {"execution": {"name": execution}}, "run": {"threads": 1}}
    config = build(*parse(words).layers, every)
    width = config.data.partition.num_clients if execution == "vectorized" else 0
    config = build(*parse(words).layers, every, {"client": {"execution": {"width": width}}})
    return prepare(resolve(config, Place()), Place())


def _round(run: Prepared) -> dict[str, Any]:
    """One round of every client."""
    start = run.task.initial_params(run.config.run.seed).to(run.training.device)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what comes, not of the trials before
    begun, spent = time.perf_counter(), _processor()
    for ids in _blocks(run):
        run.trainer[0].on(ids, 0).train(start)
    wall, processor = time.perf_counter() - begun, _processor() - spent
    tokens = int(run.data.sizes.sum()) * run.test.x.shape[1]
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return {
        "how": run.trainer[1],
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "tokens_per_processor_second": tokens / processor,
        "peak_megabytes": int(peak) // 1024,
    }


def _losses(run: Prepared) -> dict[str, Any]:
    """The loss on the test set at the start, and after each client's training by itself."""
    start = run.task.initial_params(run.config.run.seed).to(run.training.device)
    scorer = Scorer(run.task, run.test, run.data.normalize, run.device, run.config.run.seed)
    scorer.take(slice(0, len(run.test)))
    base = _loss(scorer, start)
    w = start.expand(len(run.data.sizes), -1).clone()  # [N, D]
    for round in range(run.config.run.rounds):
        for ids in _blocks(run):
            w[list(ids)] = run.trainer[0].on(ids, round).train(w[list(ids)]).w
    losses = [_loss(scorer, row) for row in w]
    counted = int((run.test.y != IGNORED).sum())
    return {"test_tokens": counted, "base": base, "alone": losses, "mean_alone": sum(losses) / len(losses)}


def _loss(scorer: Scorer, w: torch.Tensor) -> float:
    counts, _ = scorer.measure(w)
    return float(counts[-2] / counts[-1])


def _blocks(run: Prepared) -> list[range]:
    width, population = run.trainer[0].width, len(run.data.sizes)
    return [range(first, min(first + width, population)) for first in range(0, population, width)]


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
