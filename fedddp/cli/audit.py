"""Bound the epsilon of a configuration from below, and compare it with what the configuration claims.

The run takes place as configured, but what its clients upload, or the gradients of their examples, are canaries, each
of which takes part with probability 1/2. Whoever sees what is released guesses which; see `fedddp.privacy.audit`.
"""

import json
import logging
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ..checkpoints.run_folder import RunFolder
from ..comm import Comm, Purpose, interrupt, record
from ..comm.world import Place
from ..config import UsageError, build
from ..errors import DONE, FAILED
from ..federation import federate
from ..privacy import Budget, Canaries
from ..setup.assemble import connect
from ..setup.levels import level_for
from ..setup.load import prepare
from ..setup.prepared import Prepared
from ..setup.resolve import resolve
from ..telemetry.terminal import console
from .outcome import asked

log = logging.getLogger("fedddp")

CONFIDENCE = 0.95
MANY_RUNS = 100
DELTAS = (0.01, 0.1, 0.3, 0.6, 0.9)
"""Besides privacy.delta: a mechanism claims an epsilon at every delta, and at a large one few canaries refute it."""


@dataclass(frozen=True)
class Row:
    """What is claimed at ``delta`` and what was found: lower bounds of the run's epsilon, and of one without noise."""

    delta: float
    claimed: float
    found: float
    without_noise: float


@dataclass(frozen=True)
class Found:
    """The result of an audit: ``canaries`` in so many ``runs``, and a row for each delta; ``terms`` are the claim's.

    All lower bounds of a kind hold together with probability ``confidence``.
    """

    level: str
    terms: str
    canaries: int
    runs: int
    confidence: float
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """Whether no lower bound exceeds what is claimed."""
        return all(row.found <= row.claimed for row in self.rows)

    @property
    def powerful(self) -> bool:
        """Whether the audit would have noticed that the noise is missing."""
        return any(row.without_noise > row.claimed for row in self.rows)


def run(args: Namespace) -> int:
    """Audit the configuration that ``args`` give; see `fedddp.cli.options.audit`."""
    log.setLevel(logging.WARNING)  # what a run says of itself at start would come with every repetition
    place, layers = Place.from_env(), asked(args).layers
    return record(_audit)(prepared(layers, place), args.canaries, args.out) or DONE


def prepared(layers: Sequence[Any], place: Place) -> Prepared:
    """Prepare the run without what an audit does not need. Raises UsageError for a run that claims no epsilon."""
    quiet = {"telemetry": {"progress": "off", "tensorboard": False}, "checkpoint": {"every": 0}}
    off = {"target_accuracy": "off", "target": "off"}
    blind = {"evaluate": {"every": 0, "personal_every": 0, "clients_mean": False, **off}}
    unrecorded = {"account": {"dir": "", "key": "", "epsilon": "off", "delta": "off"}}  # canaries are nobody's data
    config = resolve(build(*layers, quiet, blind, {"run": {"resume": "never"}, "privacy": unrecorded}), place)
    keys, level = config.privacy, level_for(config.privacy)
    if not level.unit:
        raise UsageError("privacy.level='none': claims no epsilon that an audit could test; use client or example")
    if keys.noise_multiplier == 0:
        raise UsageError("privacy.noise_multiplier=0: claims no finite epsilon that an audit could test; add noise")
    if keys.adaptive_clip.enabled:
        raise UsageError("privacy.adaptive_clip.enabled=true: an audit measures in units of a fixed clip; leave it out")
    if config.attack.num_clients:
        raise UsageError(f"attack.num_clients={config.attack.num_clients}: the canaries are the attack; leave it out")
    p = prepare(config, place)
    if level.clips_updates and config.num_clients > p.spec.dim:
        raise UsageError(
            f"data.partition.num_clients={config.num_clients}: the model has too few parameters, {p.spec.dim}, for a "
            "canary of each; use fewer clients"
        )
    return p


def _audit(p: Prepared, most: int, out: Path | None) -> int:
    config = p.config.run
    comm = Comm.connect(p.place, p.device, backend=config.backend, timeout=config.timeout)
    found = audited(p, comm, most)
    comm.barrier(Purpose.DONE)
    comm.close()
    if p.place.rank == 0:
        report(found)
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return DONE if found.holds and found.powerful else FAILED


def audited(p: Prepared, comm: Comm, most: int) -> Found:
    """Repeat the run until it has had ``most`` canaries, and as often without noise."""
    level, deltas = p.config.privacy.level, (p.config.privacy.delta, *DELTAS)
    canaries, budgets = _repeated(p, comm, most)
    exposed, _ = _repeated(_changed(p, "privacy", noise_multiplier=0.0, target_epsilon=None), comm, most)
    claimed = [max(_claimed(p, comm, budget, delta) for budget in budgets) for delta in deltas]
    found, without_noise = (_bounds(each, comm, deltas) for each in (canaries, exposed))
    rows = tuple(Row(*row) for row in zip(deltas, claimed, found, without_noise, strict=True))
    terms = budgets[0].guarantee.terms if budgets[0].guarantee else ""
    return Found(level, terms, len(canaries), len(budgets), CONFIDENCE, rows)


def _repeated(p: Prepared, comm: Comm, most: int) -> tuple[Canaries, list[Budget]]:
    """Run with seeds of their own until there were ``most`` canaries; return them and what each run has spent."""
    canaries, budgets = Canaries(), []
    while len(canaries) < most:
        interrupt.check()
        again = _changed(p, "run", seed=p.config.run.seed + len(budgets))
        budgets.append(_observed(again, comm, canaries, most))
        if len(budgets) == 1 and (runs := -(-most // len(canaries))) > MANY_RUNS and comm.rank == 0:
            log.warning("a run has %d canaries, %d runs are needed; fewer --canaries take less", len(canaries), runs)
    return canaries, budgets


def _bounds(canaries: Canaries, comm: Comm, deltas: Sequence[float]) -> list[float]:
    """Return the lower bounds from what all ranks saw; each has seen canaries of its own."""
    scores = comm.all_reduce(canaries.scores().to(comm.device), Purpose.PRIVACY).cpu()
    return canaries.bounds(scores, deltas, 1 - CONFIDENCE)


def _observed(p: Prepared, comm: Comm, canaries: Canaries, most: int) -> Budget:
    """Run once, with more canaries until there are ``most``, and return the budget that was spent."""
    if comm.rank == 0:
        comm.check_signature(p.signature)  # rank 0 writes it down anew; the others compare with it once it is there
    comm.barrier(Purpose.DONE)
    with tempfile.TemporaryDirectory(prefix="fedddp-audit-") as folder:
        run = RunFolder(Path(folder) / "run", resumed=False)
        experiment = connect(replace(p, output=p.output and replace(p.output, folder=run, saved=None)), (), comm)
        with experiment.ending():
            level = level_for(p.config.privacy)(p, comm)
            federation = level.planted(experiment.federation, canaries, most - len(canaries))
            federate(federation, experiment.server)
            experiment.close()
    return federation.budget


def _claimed(p: Prepared, comm: Comm, spent: Budget, delta: float) -> float:
    """Return what the level's own accounting of ``spent`` claims at ``delta``."""
    budget = level_for(p.config.privacy)(_changed(p, "privacy", delta=delta), comm).budget(None)
    budget.load(spent.state())
    return budget.epsilon or 0.0


def _changed(p: Prepared, section: str, **keys: Any) -> Prepared:
    changed = getattr(p.config, section).model_copy(update=keys)
    return replace(p, config=p.config.model_copy(update={section: changed}))


def report(found: Found) -> None:
    """Print what was found."""
    print(f"privacy.level={found.level}, epsilon {found.terms}")
    table = Table(title=f"{found.canaries} canaries, {found.runs} run(s) with noise and {found.runs} without")
    for column in ("delta", "claimed: at most", f"found ({found.confidence:.0%}): at least", "without noise: at least"):
        table.add_column(column, justify="right")
    for row in found.rows:
        table.add_row(f"{row.delta:g}", *(f"{x:.3g}" for x in (row.claimed, row.found, row.without_noise)))
    console().print(table)
    for row in found.rows:
        if row.found > row.claimed:
            print(
                f"the guarantee does not hold: at delta {row.delta:g} it claims epsilon {row.claimed:.3g} at most, the "
                f"audit finds {row.found:.3g} at least"
            )
    if found.holds and found.powerful:
        print("no contradiction with the claim; missing noise would have been noticed")
    elif found.holds:
        print("the audit has no power: it would not notice if the noise were missing; use more --canaries")
