"""``fedddp plan``: what a run sends and holds, how long it takes, and what a link allows, before it is started."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from ...comm.counted import Counted
from ...comm.world import Place
from ...config import Config, ResolvedConfig, build
from ...data import DATASETS, Dataset
from ...errors import UsageError
from ...setup.about import many
from ...setup.assemble import planned
from ...setup.load import load_data, prepare
from ...setup.prepared import Prepared
from ...setup.resolve import resolve
from ...telemetry import console
from ...telemetry.environment import memory
from ...telemetry.pace import clock
from ..options import LINKS, SIZED
from ..outcome import asked
from .links import MOST, Exchange
from .timing import timed
from .traffic import held, level_of, sent, start

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes of a number."""


def run(args: Namespace) -> None:
    """Plan the run, or the sizes, on a command line; see `fedddp.cli.options.plan`."""
    _check(args)
    links = args.link or LINKS
    found, exchange = _of_sizes(args) if args.parameters else _of_run(args)
    found |= _rates(exchange) | {"links": [_over(exchange, link, found.get("rounds")) for link in links]}
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)


def _check(args: Namespace) -> None:
    """Raise UsageError for options and words that do not go together."""
    given = [name for name in SIZED if getattr(args, name) is not None]
    flag = f"--{given[0].replace('_', '-')}" if given else ""
    if given and args.parameters is None:
        remedy = "client.local_steps=N" if given[0] == "local_steps" else "the keys of the run"
        raise UsageError(f"{flag}: goes with --parameters; of a configuration give {remedy}")
    if args.parameters is not None and args.words:
        raise UsageError(f"{args.words[0]}: a configuration says its own size; leave out --parameters, or the rest")
    if args.parameters is not None and not args.timing:
        raise UsageError("--no-timing: with --parameters nothing is timed; leave it out")


def _of_sizes(args: Namespace) -> tuple[dict[str, Any], Exchange]:
    """Return what follows from sizes that were typed. Without a number of ranks: as many that one more is no matter."""
    vector = args.parameters * WIDTHS[args.dtype or "float32"]
    copies = 2 * (args.ranks - 1) / args.ranks if args.ranks else 2.0
    steps = args.local_steps or 1
    found = {"parameters": args.parameters, "vector_bytes": vector, "ranks": args.ranks, "local_steps": steps}
    exchange = Exchange(copies * vector, steps, args.step_seconds, fragments=args.fragments or 1)
    return found | {"bytes_sent": exchange.sent, "fragments": exchange.fragments}, exchange


def _of_run(args: Namespace) -> tuple[dict[str, Any], Exchange]:
    """Return what follows from a configuration."""
    ranks = args.ranks or 2
    place = Place(0, ranks, 0, ranks)
    p, blank = _prepared(build(*asked(args).layers), place)
    comm = Counted(ranks, p.device)
    level = level_of(p, comm)
    algorithm = p.config.adversary.around(level.algorithm, p.spec)
    server = start(p, algorithm)
    traffic, holds = sent(p, level, server, comm), held(p, algorithm, server)
    steps = float(p.training.work.most(p.data.sizes).double().mean())
    found = {
        "name": p.config.run.name,
        "blank_data": blank,
        "ranks": ranks,
        "clients": p.data.num_clients,
        "cohort": p.config.cohort_size,
        "parameters": p.spec.num_trainable,
        "frozen": p.spec.num_frozen,
        "vector_bytes": sum(level.algorithm.vectors(p.spec).values()) * p.spec.dtype.itemsize,
        "bytes_sent": sum(traffic.values()),
        "sent": traffic,
        "masked": p.config.privacy.secure_aggregation.enabled,
        "local_steps": steps,
        "rounds": p.config.run.rounds,
        "memory_estimated": holds,
    }
    if not args.timing:
        return found, Exchange(found["bytes_sent"], steps)
    timing, rounds = timed(p, algorithm, server), planned(p)
    training = timing.fixed + steps * timing.step
    evaluations = sum(any(rounds.due(t)) for t in range(1, rounds.rounds + 1))
    evaluation = training * rounds.evaluation * evaluations / rounds.rounds
    found |= {"step_seconds": timing.step, "fixed_seconds": timing.fixed, "memory_here": memory()}
    return found, Exchange(found["bytes_sent"], steps, timing.step, timing.fixed, evaluation)


def _prepared(given: Config, place: Place) -> tuple[Prepared, bool]:
    """Return the run, and whether its data are blank, since they are not on this machine."""
    run, data = given.run.model_copy(update={"resume": "never"}), given.data.model_copy(update={"download": False})
    config = resolve(given.model_copy(update={"run": run, "data": data}), place)
    dataset = _blank(config, place)
    dataset, partition = load_data(config, place, dataset) if dataset else (None, None)
    return prepare(config, place, dataset, partition), dataset is not None


def _blank(config: ResolvedConfig, place: Place) -> Dataset | None:
    """Return blank data of the run's form, if its data are missing and known; None if they are there."""
    blank = getattr(DATASETS.get(config.data.name), "blank", None)
    if blank is None:
        return None
    try:
        load_data(config, place)
    except UsageError as error:
        if error.code != "dataset-missing":
            raise
        return blank()
    return None


def _rates(exchange: Exchange) -> dict[str, Any]:
    """Return the seconds of a round's parts, and the rates that it needs."""
    return {
        "training_seconds": exchange.training,
        "evaluation_seconds": exchange.evaluation,
        "average_mbit": exchange.average,
        "peak_mbit": exchange.peak,
    }


def _over(exchange: Exchange, link: float, rounds: int | None) -> dict[str, Any]:
    """Return what a link of so many Mbit/s makes of a round."""
    whole = exchange.round(link)
    return {
        "mbit": link,
        "communication_seconds": exchange.seconds(link),
        "round_seconds": whole,
        "run_seconds": whole * rounds if whole and rounds else None,
        "utilisation": exchange.utilisation(link),
        "least_local_steps": exchange.least_steps(link),
    }


def _show(found: dict[str, Any]) -> None:
    """Print what was found."""
    for name, text in _rows(found).items():
        print(f"  {name:<12}{text}")
        if name == "memory":
            parts = sorted(found["memory_estimated"].items(), key=lambda part: -part[1])
            print(*(f"{'':14}{decimal(size):>9}  {what}" for what, size in parts if size), sep="\n")
    columns = {
        "link, Mbit/s": [f"{row['mbit']:g}" for row in found["links"]],
        "communication": [_seconds(row["communication_seconds"]) for row in found["links"]],
        "round": [_seconds(row["round_seconds"]) for row in found["links"]],
        "run": [_seconds(row["run_seconds"]) for row in found["links"]],
        "training": [f"{row['utilisation']:.1%}" if row["utilisation"] else "" for row in found["links"]],
        f"H for under {MOST:.0%}": [
            f"{row['least_local_steps']:,}" if row["least_local_steps"] else "" for row in found["links"]
        ],
    }
    table = Table(box=None, pad_edge=False)
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    for title in filled:
        table.add_column(title, justify="right")
    for cells in zip(*filled.values(), strict=True):
        table.add_row(*cells)
    console().print(table)


def _rows(found: dict[str, Any]) -> dict[str, str]:
    """Return the lines above the table."""
    ranks, rows = found["ranks"], {"parameters": f"{found['parameters']:,.0f}"}
    if "frozen" in found:
        rows["parameters"] += f" trained, {found['frozen']:,} frozen"
        rows["clients"] = f"{found['clients']:,}, {found['cohort']:,} of them per round, on {many(ranks, 'rank')}"
        rows["training"] = f"{found['local_steps']:,.6g} steps of a client per round; {many(found['rounds'], 'round')}"
    rows["update"] = f"{decimal(round(found['vector_bytes']))}, uncompressed"
    rows["sent"] = (
        f"{decimal(round(found['bytes_sent']))} per rank and round{'' if ranks else ', as one of many ranks'}"
    )
    if found.get("masked"):
        rows["sent"] += ", without the messages of secure aggregation"
    if "memory_estimated" in found:
        total = decimal(sum(found["memory_estimated"].values()))
        rows["memory"] = f"{total} per rank, estimated; activations and libraries come on top"
    if found.get("blank_data"):
        rows["data"] = "not on this machine: planned on blank examples of their form"
    if "step_seconds" in found:
        step, training = _seconds(found["step_seconds"]), _seconds(found["training_seconds"])
        rows["timed here"] = f"{step} a step of a rank's clients, {training} of training per round; one process alone"
        rows["peak"] = f"{found['memory_here']} of memory, of this process"
    if found["average_mbit"]:
        average, peak = _rate(found["average_mbit"]), _rate(found["peak_mbit"])
        rows["bandwidth"] = f"{average} on average; {peak} at the peak, if what is sent may delay no step"
    return rows


def _rate(mbit: float) -> str:
    return f"{mbit / 1e3:,.3g} Gbit/s" if mbit >= 1e3 else f"{mbit:.3g} Mbit/s"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return clock(seconds) if seconds >= 100 else f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
