"""Two ranks in network namespaces of their own, over a link of a limited rate, against what `fedddp plan` prints.

    python -m benchmarks.links [--rates 50,200,1000] [--rounds 8] [WORDS OF A CONFIGURATION ...]

The namespaces are joined by a pair of virtual interfaces, each with a token bucket filter (tc tbf). For each rate the
plan is made in both namespaces at once, as two ranks compute at once; then the run takes place. Compute utilisation is
seconds_train / seconds of rank 0's metrics.jsonl, the median of the rounds but the first and the last, which is
evaluated. Other work on the machine changes how long training takes from one to the other: the last two columns take
the training time of the run itself, so that they compare the link's part alone. Needs root, ip and tc (iproute2).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from . import machine
from .wire import ip, namespace, remove

WORDS = ["--data.name=synthetic", "--data.args.num_test=100", "--model.name=cnn", "--data.partition.num_clients=2"]
WORDS += ["--client.local_steps=25", "--client.batch_size=10", "--privacy.trust_network=true"]
QUIET = ["--telemetry.tensorboard=false", "--telemetry.progress=off", "--checkpoint.every=0", "--evaluate.every=0"]
LINK, PORT = "link0", 29611


def address(rank: int) -> str:
    return f"10.213.7.{rank + 1}"


@contextmanager
def joined() -> Iterator[None]:
    """Make both namespaces and the link between them; remove them afterwards."""
    try:
        for rank in (0, 1):
            ip("netns", "add", namespace(rank))
            ip("-n", namespace(rank), "link", "set", "lo", "up")
        there = ("netns", namespace(1))
        ip("link", "add", LINK, "netns", namespace(0), "type", "veth", "peer", "name", LINK, *there)
        for rank in (0, 1):
            ip("-n", namespace(rank), "address", "add", f"{address(rank)}/24", "dev", LINK)
            ip("-n", namespace(rank), "link", "set", LINK, "up")
        yield
    finally:
        for rank in (0, 1):
            remove(rank)


def limit(rate: float) -> None:
    """Limit both directions to ``rate`` Mbit/s."""
    for rank in (0, 1):
        shaped = ["rate", f"{rate:g}mbit", "burst", "128kb", "latency", "100ms"]
        subprocess.run(
            ["tc", "-n", namespace(rank), "qdisc", "replace", "dev", LINK, "root", "tbf", *shaped], check=True
        )


def both(words: Sequence[str]) -> list[str]:
    """Run ``fedddp WORDS`` in both namespaces at once, as ranks 0 and 1; what each prints."""
    started = []
    for rank in (0, 1):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        place |= {"MASTER_ADDR": address(0), "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": LINK}
        own = {**os.environ, "OMP_NUM_THREADS": "1", **(place if "train" in words else {})}
        command = ["ip", "netns", "exec", namespace(rank), sys.executable, "-m", "fedddp", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=own, **pipes))
    outputs = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"fedddp {' '.join(words)}:\n{outputs[0][1]}{outputs[1][1]}")
    return [printed for printed, _ in outputs]


def measured(rate: float, words: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """The plan and the run at one rate."""
    limit(rate)
    words = [*words, *QUIET, f"--run.rounds={rounds}", "--run.threads=1"]
    plans = [json.loads(text) for text in both(["plan", "--json", "-n", "2", f"--link={rate:g}", *words])]
    both(["train", *words, f"--run.dir={folder}", f"--run.name=at-{rate:g}", "--run.backend=gloo"])
    lines = (folder / f"at-{rate:g}" / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines][1:-1]
    trains, seconds, sums = ([m[key] for m in kept] for key in ("seconds_train", "seconds", "seconds_aggregate"))
    communication = plans[0]["links"][0]["communication_seconds"]
    return {
        "rate": rate,
        "bytes_planned": plans[0]["sent"]["aggregate"],
        "bytes_sent": kept[0]["bytes_sent"],
        "communication_planned": communication,
        "communication": median(sums),
        "training_planned": mean(plan["training_seconds"] for plan in plans),
        "training": median(trains),
        "planned": mean(plan["links"][0]["utilisation"] for plan in plans),
        "utilisation": median(t / s for t, s in zip(trains, seconds, strict=True)),
        "planned_by_own_training": median(t / (t + communication) for t in trains),
        "rounds": kept,
    }


def show(found: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="two ranks over a limited link: planned / measured")
    columns = (
        "Mbit/s",
        "MB a round",
        "communication, s",
        "training, s",
        "utilisation",
        "ratio",
        "own training",
        "ratio",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in found:
        used, own = row["utilisation"], row["planned_by_own_training"]
        table.add_row(
            f"{row['rate']:g}",
            f"{row['bytes_planned'] / 1e6:.3f} / {row['bytes_sent'] / 1e6:.3f}",
            *(f"{row[f'{key}_planned']:.3f} / {row[key]:.3f}" for key in ("communication", "training")),
            f"{row['planned']:.3f} / {used:.3f}",
            f"{used / row['planned']:.2f}",
            f"{own:.3f} / {used:.3f}",
            f"{used / own:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description="compute utilisation over a link")
    parser.add_argument("--rates", default="50,200,1000", help="Mbit/s [50,200,1000]")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of a run [8]")
    parser.add_argument("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    args, words = parser.parse_known_args()
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    if missing or os.geteuid():
        parser.error(f"needs root, and iproute2 for ip and tc{f' (missing: {missing[0]})' if missing else ''}")
    console, described = Console(width=None if sys.stdout.isatty() else 150), machine.describe((args.out,))
    with tempfile.TemporaryDirectory(prefix="fedddp-") as folder, joined():
        rates = [float(rate) for rate in args.rates.split(",")]
        found = [measured(rate, [*WORDS, *words], args.rounds, Path(folder)) for rate in rates]
    show(found, console)
    console.print(f"[dim]{machine.in_words(described)}")
    console.print(f"kept in {machine.keep(Path(args.out), 'links', {'machine': described, 'found': found})}")


if __name__ == "__main__":
    main()
