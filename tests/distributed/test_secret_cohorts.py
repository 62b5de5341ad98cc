"""Whether anybody can tell from the run folder, or from the time of a round, in which rounds a rank's client was drawn.

The attack takes every number that the folder has of a round and tries to tell rank 0's drawn rounds from the others, by
a rank test on each, corrected for their number. A local step takes 1.7 seconds of a clock that nothing else moves, and
the heartbeat renews its message after each training.
"""

import json
import os
import secrets
import time
from itertools import pairwise

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedddp.aggregation import SilentTally
from fedddp.comm import Place
from fedddp.config import build
from fedddp.federation import federate
from fedddp.setup.assemble import connect
from fedddp.setup.levels.client import ClientPrivacy
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from fedddp.telemetry.beside import Background
from fedddp.types import SummedReport
from tests.helpers.distributed import configured, train

mannwhitneyu = pytest.importorskip("scipy.stats").mannwhitneyu
ALPHA = 0.01
ROUNDS = 40
CLIENT = {
    **{"level": "client", "noise_multiplier": 1.0, "clip": 0.5, "delta": 1e-2, "accountant": "rdp"},
    **{"randomness": "seeded", "guard": True},
}

MASKED = {"secure_aggregation": {"enabled": True, "min_clients": 1}}


def table_of(tmp_path, name="run", rounds=ROUNDS, *, clients=6, drawn=1, privacy=CLIENT, client=None, **sections):
    """By default each of six clients is drawn once in six rounds, so that a rank has one in about four of ten."""
    run = {"name": name, "rounds": rounds, "resume": sections.pop("resume", "never")}
    width = {"batch_size": 40, "execution": {"width": 1}}
    return configured(
        tmp_path,
        run=run,
        model={"hidden": 2},
        data={"placement": "home", "partition": {"num_clients": clients}},
        cohort={"size": drawn},
        client=width | (client or {}),
        privacy=privacy,
        **sections,
    )


class Snapshots:
    """A sink that keeps each round's status.json and the time."""

    def __init__(self, path):
        self._path, self.found = path, []

    def round(self, record):
        self.found.append((json.loads((self._path / "status.json").read_text()), time.perf_counter()))

    def close(self, summary):
        pass


def run_by_steps(comm, table, control):
    """Train with a clock of local steps; rank 0's drawn rounds, its clients trained, status and time of each."""
    now = [1e9]
    time.perf_counter = time.time = lambda: now[0]
    time.strftime = lambda *_: str(now[0])
    os.fsync = lambda _: None  # a thousand of them
    Background.run = lambda _, work, *args: work(*args)  # at this clock's time
    if control:  # as if the level did not hide the cohort
        ClientPrivacy.hides_cohort = False
        SilentTally.report = lambda tally: (None, SummedReport((tally._own_seconds,)))
        secrets.token_hex = lambda *_: "0"
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    prepared = prepare(resolve(build(table), place), place)
    snapshots = Snapshots(prepared.folder.path) if prepared.folder else None
    experiment = connect(prepared, sinks=[snapshots] if snapshots else [], comm=comm)
    f = experiment.federation
    local_training = f.trainer.train

    def train_slowly(*args):
        result = local_training(*args)
        now[0] += 1.7 * float(result.steps.sum())
        comm._heartbeat.again()
        return result

    f.trainer.train = train_slowly
    with experiment.ending():
        federate(f, experiment.server)
        experiment.close(experiment.summary(experiment.server))
    drawn = [bool(f.sampler.cohort(t).ids) for t in range(table["run"]["rounds"])]  # of this rank's own
    return drawn, snapshots and snapshots.found


def numbers(prefix, value):
    """Every number in a JSON value, by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in numbers(f"{prefix}.{key}", part).items()}
    return {prefix: float(value)} if isinstance(value, int | float) else {}


def features(folder, statuses):
    """One dict of numbers a round: all that the run folder has, differences of times and hashes included."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [numbers("metrics", line) for line in lines]
    for row, line in zip(found, (folder / "ledger.jsonl").read_text().splitlines(), strict=True):
        for entry in json.loads(line)["sent"]:
            row |= numbers(f"ledger {entry['op']} {entry['purpose']}", {k: entry[k] for k in ("bytes", "count")})
    for row, line in zip(found, (folder / "privacy.jsonl").read_text().splitlines(), strict=True):
        row |= numbers("spent", json.loads(line))
    for row, before, (status, _) in zip(found, [None, *statuses], statuses, strict=False):
        row |= numbers("status", {k: v for k, v in status.items() if k != "pid"})
        if before and status["updated"]:
            row["status.updated"] = float(status["updated"]) - float(before[0]["updated"])
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        scalars = {event.step: event for event in events.Scalars(tag)}
        for t, event in scalars.items():
            found[t - 1][f"event {tag}"] = event.value
            if t - 1 in scalars:
                found[t - 1][f"event {tag} wall time"] = event.wall_time - scalars[t - 1].wall_time
    checkpoints = sorted((folder / "checkpoints").glob("round-*"))
    for t, (before, now) in enumerate(pairwise(checkpoints), start=1):
        for file in now.iterdir():
            if file.name != "server.safetensors":
                found[t][f"{file.name} changed"] = float(file.read_bytes() != (before / file.name).read_bytes())
                found[t][f"{file.name} size"] = float(file.stat().st_size)
    return found


def told_apart(found, drawn):
    """The names of the numbers by which drawn rounds differ from others, at level ALPHA over all of them."""
    names, telling = sorted({name for row in found for name in row}), set()
    for name in names:
        values = [row.get(name, -1.0) for row in found]
        yes, no = ([v for v, d in zip(values, drawn, strict=True) if d is side] for side in (True, False))
        if len(set(values)) > 1 and mannwhitneyu(yes, no).pvalue * len(names) < ALPHA:
            telling.add(name)
    return telling


@pytest.mark.parametrize(
    ("control", "ranks", "privacy"),
    [(False, 2, CLIENT), (False, 3, CLIENT | MASKED), (True, 2, CLIENT)],
    ids=["hidden", "masked", "control"],
)
def test_nothing_in_the_run_folder_tells_when_a_client_was_drawn(tmp_path, run_ranks, control, ranks, privacy):
    table = table_of(
        tmp_path,
        privacy=privacy,
        algorithm={"name": "ditto"},
        checkpoint={"every": 1, "keep": ROUNDS, "clients_dir": str(tmp_path / "own" / "{rank}")},
        telemetry={"tensorboard": True},
    )
    drawn, snapshots = run_ranks(run_by_steps, ranks, table, control, limit=300.0)[0]
    assert 8 < sum(drawn) < 32
    found = features(tmp_path / "runs" / "run", snapshots)
    assert len({name for row in found for name in row}) > 40
    telling = told_apart(found, drawn)
    assert (SEEN_BEFORE - telling if control else telling) == set()


SEEN_BEFORE = {
    *("metrics.seconds", "metrics.seconds_train", "metrics.sent.progress", "status.updated"),
    *("event 5 system/seconds train", "event 1 learning/loss test wall time", "clients-00000.sha256 changed"),
    *("ledger store progress.count", "ledger store progress.bytes"),
}


@pytest.mark.parametrize(
    ("equal", "ranks", "masks"),
    [(True, 2, {}), (True, 3, MASKED), (False, 2, {})],
    ids=["equal", "masked", "control"],
)
def test_with_equal_work_the_time_of_a_round_does_not_tell_either(tmp_path, run_ranks, equal, ranks, masks):
    table = table_of(
        tmp_path, privacy=CLIENT | masks | {"equal_work": equal}, client={"local_steps": 2}, checkpoint={"every": 0}
    )
    drawn, snapshots = run_ranks(run_by_steps, ranks, table, False, limit=300.0)[0]
    ended = [0.0, *(clock for _, clock in snapshots)]
    seconds = [{"seconds": now - before} for before, now in pairwise(ended)][1:]
    assert told_apart(seconds, drawn[1:]) == (set() if equal else {"seconds"})


DITTO = {"algorithm": {"name": "ditto"}}


@pytest.mark.parametrize(
    ("ranks", "clients", "privacy", "sections"),
    [
        (2, 40, {}, {}),
        (2, 6, {"adaptive_clip": {"enabled": True}}, {}),
        (3, 6, MASKED, {}),
        (2, 6, {}, DITTO),
        (3, 6, MASKED | {"adaptive_clip": {"enabled": True}}, DITTO),
        (1, 4, {}, {}),
    ],
    ids=["more clients than are trained", "adaptive", "masked", "ditto", "masked ditto", "one rank"],
)
def test_equal_work_changes_no_bit_of_the_model_or_of_what_clients_remember(
    tmp_path, run_ranks, ranks, clients, privacy, sections
):
    """Also after a resume, by which it may be switched."""

    def remembered(name):
        files = sorted((tmp_path / "own").glob(f"*/{name}-*/*/round-000004.safetensors"))
        return {key: vector.tolist() for file in files for key, vector in load_file(file).items()}

    own = {"checkpoint": {"every": 1, "clients_dir": str(tmp_path / "own" / "{rank}")}}

    def sha(name, rounds, equal, resume="never"):
        keys = CLIENT | privacy | {"equal_work": equal}
        table = table_of(
            tmp_path, name, rounds, clients=clients, drawn=2, privacy=keys, resume=resume, **sections, **own
        )
        return run_ranks(train, ranks, table)[0]["sha256"]

    plain = sha("plain", 4, equal=False)
    assert sha("equal", 4, equal=True) == plain
    assert remembered("equal") == remembered("plain")
    assert bool(remembered("plain")) == (sections == DITTO)
    sha("cut", 2, equal=True)
    assert sha("cut", 4, equal=False, resume="auto") == plain
