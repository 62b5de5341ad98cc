"""fedddp beside other programs on the same federated job, a round of each in turn.

    python -m benchmarks.run --workload w1|w2|w3|lr_mnist|million|text|gpt [--against pytorch,sequential,pfl,flower]
        [--checkout=DIR] [--ranks 2] [--threads 1] [--rounds n] [--data.root=DIR] [--set section.key=value ...]

Each contender is a program of its own that loads everything, then sleeps until it is asked for a round; the order of
turns alternates, and the first round of each only warms up. Ratios are of one repeat to the same repeat, since seconds
depend on what else the machine does. `pytorch` is a plain PyTorch loop, `sequential` is fedddp with
client.execution.name=sequential; `pfl` and `flower` need benchmarks/setup_peers.sh. ``--checkout`` is another working
tree of fedddp, measured by its own script: what a change costs or gains, start-up included. Table,
figure and every figure of every round go to benchmarks/records/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedddp.comm import Place
from fedddp.config import UsageError

from . import machine, report
from .contender import Contender
from .contenders.fedddp import configuration, load
from .workloads import WORKLOADS, Workload, write_arrays, write_settings

PEERS = ("pfl", "flower")
MNIST = 60_000  # training images; that many are dealt out in every workload
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What fedddp asks of the C library for itself (`fedddp.setup.experiment`), as a user could ask it of any program."""
AGAINST = ("pytorch", "sequential", *PEERS)
SCRIPT_OF_A_CHECKOUT = "benchmarks/contenders/fedddp"


def main() -> int:
    """Run the program; the exit code."""
    parser = _parser()
    try:
        return 0 if compare(parser.parse_args(), a_console()) else 1
    except UsageError as error:
        parser.error(str(error))


def a_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 130, log_path=False)


def arguments(*words: str) -> argparse.Namespace:
    """The parsed arguments for these words."""
    return _parser().parse_args(words)


def compare(args: argparse.Namespace, console: Console) -> dict[str, Any] | None:
    """Measure, print and keep; the record, or None if fedddp itself did not run. Raises UsageError."""
    workload = WORKLOADS[args.workload]
    against = _against(args, workload)
    if args.keep_memory:
        os.environ.update(KEEP_MEMORY)
    described = machine.describe((args.root, args.peers, args.checkout, args.out))
    repeats = args.rounds or workload.repeats
    settings = workload.settings(
        ranks=args.ranks, threads=args.threads, device=args.device, repeats=repeats, examples=args.examples
    )
    with tempfile.TemporaryDirectory(prefix="fedddp-") as folder:
        work = Path(folder)
        write_settings(work, settings)
        title, each = _dealt(workload, args, settings, against, work)
        contenders = _contenders(workload, args, against, work)
        measure(contenders, repeats=repeats, starts=workload.starts, say=console.log)
    outcomes = {c.name: c.outcome for c in contenders}
    for name in {*PEERS} & {*outcomes}:
        if not outcomes[name].rounds:
            outcomes[name].reason = f"{outcomes[name].reason} (benchmarks/setup_peers.sh {name} installs it)"
    report.show(title, outcomes, workload.measures, console)
    console.print(f"[dim]{machine.in_words(described)}")
    if not contenders[0].outcome.rounds:
        return None
    record = {
        "workload": settings,
        "examples_each": each,
        "title": title,
        "machine": described,
        "contenders": {name: outcome.as_dict() for name, outcome in outcomes.items()},
        "ratios": report.ratios(outcomes, workload.measures),
    }
    figure = report.picture(title, outcomes, workload.measures)
    kept = machine.keep(Path(args.out), workload.name, record, figure)
    console.print(f"kept in {kept} and {kept.with_suffix('.png').name}")
    return record


def _against(args: argparse.Namespace, workload: Workload) -> list[str]:
    against = [name for name in (args.against or "").split(",") if name]
    unknown = [name for name in against if name not in AGAINST]
    if unknown:
        raise UsageError(f"--against={args.against}: {', '.join(unknown)} should be of {', '.join(AGAINST)}")
    if len(workload.variants) > 1 and (against or args.examples or args.checkout):
        raise UsageError(
            f"--workload {workload.name} compares fedddp with itself: without --against, --checkout and --examples"
        )
    if args.checkout and not Path(args.checkout, f"{SCRIPT_OF_A_CHECKOUT}.py").is_file():
        raise UsageError(
            f"--checkout={args.checkout}: holds no {SCRIPT_OF_A_CHECKOUT}.py; give a working tree of fedddp"
        )
    return against


def measure(contenders: Sequence[Contender], *, repeats: int, starts: int, say: Callable[[str], None]) -> None:
    """Start all, one after another; then a round of each in turn. What one fails at costs nobody else."""
    try:
        for start in range(starts):
            for contender in _turn(contenders, start):
                contender.stop()
                contender.start()
        for repeat in range(repeats + 1):
            for contender in _turn(contenders, repeat):
                contender.round()
            if repeats < 20 or repeat % 10 == 0:
                say(_told(contenders, f"repeat {repeat}" if repeat else "warm-up"))
    finally:
        for contender in contenders:
            contender.stop()


def _turn(contenders: Sequence[Contender], repeat: int) -> Sequence[Contender]:
    """Forwards, then backwards, so that none always profits from its neighbour."""
    return contenders if repeat % 2 == 0 else contenders[::-1]


def _told(contenders: Sequence[Contender], what: str) -> str:
    last = {c.name: (c.outcome.rounds or [c.outcome.warm_up])[-1] for c in contenders if not c.outcome.reason}
    return f"{what}: " + ", ".join(f"{name} {record['total']:.2f} s" for name, record in last.items() if record)


def _contenders(workload: Workload, args: argparse.Namespace, against: Sequence[str], work: Path) -> list[Contender]:
    def own(name: str, *more: str, script: str = "fedddp") -> Contender:
        words = [*_data(args, workload), *workload_words, *more, f"--run.name={name}"]
        return Contender(name, script, Path(sys.executable), work, words, args.threads)

    workload_words = [f"--{override}" for override in args.set]
    contenders = [own(name, *overrides) for name, overrides in workload.variants.items()]
    for name in against:
        if name == "sequential":
            contenders.append(own(name, "--client.execution.name=sequential"))
            continue
        python = Path(args.peers, name, "bin", "python").absolute() if name in PEERS else Path(sys.executable)
        contenders.append(Contender(name, name, python, work, (), args.threads))
        if not python.exists():
            contenders[-1].outcome.reason = "it is not installed"
    if args.checkout:
        contenders.append(own("checkout", script=str(Path(args.checkout).absolute() / SCRIPT_OF_A_CHECKOUT)))
    return contenders


def _dealt(
    workload: Workload, args: argparse.Namespace, settings: dict, against: Sequence[str], work: Path
) -> tuple[str, tuple[int, int]]:
    """Deal the data out for those who do not load it themselves. The measurement in a line; the clients' sizes."""
    variant = next(iter(workload.variants.values()))
    words = [*_data(args, workload), *(f"--{override}" for override in args.set), *variant]
    config = configuration(settings, words, Place(world_size=args.ranks))
    dataset, partition = load(config, args.examples)
    if set(against) - {"sequential"}:
        write_arrays(work, dataset, partition)
    low, high = int(partition.sizes.min()), int(partition.sizes.max())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    population = (
        " and ".join(name for name in workload.variants) if len(workload.variants) > 1 else settings["num_clients"]
    )
    examples = f"{len(dataset.train):,} examples of {config.data.name}"
    fewer = "data" not in workload.sections and partition.sizes.sum() < MNIST
    title = (
        f"{workload.name}: {workload.model}, {population} clients of {each} examples, {config.cohort_size} a round, "
        f"E={config.client.local_epochs}, B={config.client.batch_size}, lr {workload.lr}; {examples}"
        f"{' (clients are smaller than the workload says)' if fewer else ''}; "
        f"{args.ranks} rank(s) of {args.threads} thread(s), {args.device}"
        f"{', ' + ' '.join(args.set) if args.set else ''}{', all with malloc kept' if args.keep_memory else ''}"
    )
    return title, (low, high)


def _data(args: argparse.Namespace, workload: Workload) -> list[str]:
    if "data" in workload.sections:
        return []
    return ["--data.name=mnist", f"--data.root={args.root}"] if args.root else ["--data.name=mnist-mini"]


def _parser() -> argparse.ArgumentParser:
    jobs = "\n".join(f"  {name:9} {(type(w).__doc__ or '').splitlines()[0]}" for name, w in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=f"{__doc__}\nworkloads:\n{jobs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("--workload", required=True, choices=WORKLOADS)
    add("--against", help=f"comma-separated: {', '.join(AGAINST)}")
    add("--checkout", metavar="DIR", help="another working tree of fedddp, as one more contender")
    add("--ranks", type=int, default=2, help="processes a contender [2]")
    add("--threads", type=int, default=1, help="threads a process [1]")
    add("--rounds", type=int, help="repeats that count [the workload's]")
    add("--examples", type=int, help="use the first so many training images only")
    add("--data.root", dest="root", help="MNIST in torchvision's layout; without: embedded digits")
    add("--peers", default=".peers", help="folder of the peers' environments [.peers]")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--keep-memory", action="store_true", help="give the others fedddp's setting of malloc too")
    add("--set", nargs="+", action="extend", default=[], metavar="section.key=value", help="overrides for fedddp")
    add("--out", default=str(machine.RECORDS), help="folder for the record [benchmarks/records]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
