"""fedddp.telemetry: what a run writes, key by key."""

import json
import math
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedddp.checkpoints.run_folder import RunFolder
from fedddp.comm import Comm
from fedddp.evaluation.server import Mistake, Score
from fedddp.tasks.metrics import Target
from fedddp.telemetry import Files, Plan, Stopwatch, Telemetry, progress, rewind
from fedddp.types import Mean, RoundReport, ServerState
from tests.helpers.support import Recorder, flat

METRICS = [
    *("round", "test_accuracy", "test_loss", "train_loss", "participants", "failures", "examples", "seconds"),
    *("seconds_train", "seconds_aggregate", "seconds_evaluate", "imbalance", "bytes_sent", "sent"),
]
SUMMARY = [
    *("rounds", "final_test_accuracy", "best_test_accuracy", "rounds_to_target", "final_test_loss", "failures"),
    *("model_sha256", "num_parameters"),
    *("world_size", "num_clients", "seconds_total", "clients_per_second"),
]
OF_THE_RUN = {"model_sha256": "ab", "num_parameters": 10, "world_size": 1, "num_clients": 4}
CONFUSION = torch.tensor([[3.0, 1.0], [0.0, 4.0]])


def report(loss=(0.5, math.nan, 1.0), examples=(10, 20, 30)):
    return RoundReport(
        loss=torch.tensor(loss, dtype=torch.float64),
        accuracy=torch.tensor(loss, dtype=torch.float64) / 2,
        examples=torch.tensor(examples),
        failed=tuple(i for i, x in enumerate(loss) if x != x),
        seconds_train=(0.25,),
    )


def score(accuracy, loss=0.7):
    mistake = Mistake(torch.zeros(1, 4, 4, dtype=torch.uint8), 0, 1, 2.5)
    return Score({"accuracy": accuracy}, loss, CONFUSION, (mistake,))


def tell(telemetry, t, accuracy=None, *, report=report(), comm=None, loss=0.7):  # noqa: B008 - it is frozen
    clock = Stopwatch(time.perf_counter())
    clock.aggregated(report)
    clock.evaluated()
    mean = Mean({}, 40.0, int(report.loss.isfinite().sum()), 40)
    state = ServerState(torch.zeros(1), flat(1), {}, t)
    telemetry.round(state, report, mean, accuracy and score(accuracy, loss), clock, comm or Comm.alone())


def test_a_round_has_the_contracts_keys_and_means_over_the_clients_that_succeeded():
    sink = Recorder()
    telemetry = Telemetry([sink])
    tell(telemetry, 3, 0.8)
    (record,) = sink.records
    m = record.metrics
    assert list(m) == METRICS
    assert (m["round"], m["test_accuracy"], m["test_loss"]) == (3, 0.8, 0.7)
    assert m["train_loss"] == (10 * 0.5 + 30 * 1.0) / 40
    assert record.report.train_accuracy == (10 * 0.25 + 30 * 0.5) / 40
    assert (m["participants"], m["failures"], m["examples"]) == (2, 1, 40)
    assert m["seconds_train"] == 0.25
    assert telemetry.history == [m]


def test_where_times_would_tell_who_was_drawn_nothing_has_one(tmp_path, capsys):
    folder = RunFolder(tmp_path, resumed=False)
    telemetry = Telemetry([Files(folder, 3), *progress("lines", Plan(3))], timed=False)
    tell(telemetry, 1, 0.8, report=replace(report(), seconds_train=()))
    (m,) = telemetry.history
    assert list(m) == METRICS
    assert {key for key in m if m[key] is None} == {*METRICS[7:11], "imbalance"}
    assert json.loads((tmp_path / "status.json").read_text())["updated"] is None
    assert " s" not in capsys.readouterr().out.replace("clients", "")
    summary = telemetry.summary()
    assert (summary["seconds_total"], summary["clients_per_second"]) == (None, None)


def test_what_is_not_known_or_not_finite_is_null():
    telemetry = Telemetry()
    tell(telemetry, 1)
    tell(telemetry, 2, 0.5, loss=math.nan)
    tell(telemetry, 3, 0.5, report=report((math.nan,) * 3))
    tell(telemetry, 4, 0.5, report=report((0.0,) * 3, (0, 0, 0)))
    assert [m["test_accuracy"] for m in telemetry.history] == [None, 0.5, 0.5, 0.5]
    assert [m["test_loss"] for m in telemetry.history] == [None, None, 0.7, 0.7]
    assert [m["train_loss"] is None for m in telemetry.history] == [False, False, True, True]
    json.dumps(telemetry.history, allow_nan=False)


def test_imbalance_is_the_slowest_ranks_training_against_the_mean():
    telemetry = Telemetry()
    tell(telemetry, 1, report=replace(report(), seconds_train=(1.0, 3.0)))
    tell(telemetry, 2, report=replace(report(), seconds_train=(0.0, 0.0)))
    assert [m["imbalance"] for m in telemetry.history] == [1.5, 0.0]


def test_bytes_are_those_of_the_round():
    telemetry, comm = Telemetry(), Comm.alone()
    for comm.bytes_sent in (100, 250):
        tell(telemetry, 1, comm=comm)
    assert [m["bytes_sent"] for m in telemetry.history] == [100, 150]


def test_the_summary_has_the_contracts_keys():
    telemetry = Telemetry(target=Target("accuracy", 0.6))
    for t, accuracy in enumerate([0.5, 0.6, 0.9, 0.7, None], 1):
        tell(telemetry, t, accuracy)
    summary = telemetry.summary(**OF_THE_RUN)
    assert list(summary) == SUMMARY
    assert (summary["rounds"], summary["rounds_to_target"]) == (5, 2)
    assert (summary["final_test_accuracy"], summary["best_test_accuracy"]) == (0.7, 0.9)
    assert summary["clients_per_second"] == 10 / 1.25
    assert summary["seconds_total"] == sum(m["seconds"] for m in telemetry.history)


@pytest.mark.parametrize(
    ("rounds", "summed"),
    [
        ([{"E: no": 1}, {"E: no": 1}], {"E: no": 2}),
        ([{"E: no": 1}, {}], {"E: no": 1, "reason not recorded": 1}),  # the second failed on another rank
        (
            [{}, {"its update is not finite": 1}, {"E: no": 1}],
            {"reason not recorded": 1, "E: no": 1, "its update is not finite": 1},
        ),
    ],
)
def test_the_summary_counts_failures_by_reason(rounds, summed):
    telemetry = Telemetry()
    for t, reasons in enumerate(rounds, 1):
        tell(telemetry, t, 0.5, report=replace(report(), reasons=reasons))
    assert telemetry.summary()["failures"] == summed
    resumed = Telemetry(history=telemetry.history)
    assert resumed.summary()["failures"] == summed
    untold = Telemetry(history=[m | {"failures": None, "failure_reasons": {}} for m in telemetry.history])
    assert untold.summary()["failures"] is None


def test_the_summary_of_nothing_and_of_no_target_is_null():
    assert Telemetry().summary()["best_test_accuracy"] is None
    assert Telemetry().summary()["clients_per_second"] is None
    telemetry = Telemetry()
    tell(telemetry, 1, 1.0)
    assert telemetry.summary()["rounds_to_target"] is None
    telemetry = Telemetry(target=Target("accuracy", 0.9))
    tell(telemetry, 1, 0.8)
    assert telemetry.summary()["rounds_to_target"] is None


def test_files_hold_a_line_a_round_then_the_summary(tmp_path):
    telemetry = Telemetry([Files(RunFolder(tmp_path, False), 2)])
    tell(telemetry, 1, 0.5)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    tell(telemetry, 2, 0.6)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == telemetry.history
    assert not (tmp_path / "summary.json").exists()
    summary = telemetry.summary(**OF_THE_RUN)
    telemetry.close(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["round"], status["rounds"]) == ("done", 2, 2)


def test_a_run_cut_short_has_no_summary(tmp_path):
    telemetry = Telemetry([Files(RunFolder(tmp_path, False), 2)])
    tell(telemetry, 1)
    telemetry.close(None)
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"


@pytest.mark.parametrize(("done", "kept"), [(0, 0), (2, 2), (3, 3), (9, 3)])
def test_rewind_drops_later_rounds_and_a_line_that_was_cut_off(tmp_path, done, kept):
    folder = RunFolder(tmp_path, resumed=True)
    telemetry = Telemetry([Files(folder, 9)])
    for t in (1, 2, 3):
        tell(telemetry, t, 0.5)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + whole.splitlines()[0][:50])
    history = rewind(folder, done)
    assert history == telemetry.history[:kept]
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole.splitlines(keepends=True)[:kept])
    again = Telemetry([Files(folder, 9)], history)
    tell(again, done + 1)
    rounds = [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [*range(1, kept + 1), done + 1]
    assert again.summary()["rounds"] == done + 1


def test_rewind_of_a_run_without_metrics_is_empty(tmp_path):
    assert rewind(RunFolder(tmp_path, resumed=True), 5) == []


def test_the_stopwatch_tells_training_aggregation_and_evaluation_apart(monkeypatch):
    """All ranks start at 10 s; this one arrives at 13 s, the slowest at 14 s; the model is there at 15 s."""
    now = iter([13.0, 15.0, 17.5])
    monkeypatch.setattr("fedddp.telemetry.telemetry.time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = Stopwatch(synced_at=10.0)
    clock.arrived()
    clock.aggregated(RoundReport(*[torch.zeros(1)] * 3, (), (2.5, 4.0)))
    clock.evaluated()
    assert (clock.train, clock.aggregate, clock.evaluate) == (4.0, 1.0, 2.5)


def test_a_rank_that_started_late_does_not_count_its_delay_as_aggregation(monkeypatch):
    """It trained for 2.5 s only, but arrived last: the collective is what came after its arrival."""
    now = iter([14.5, 15.0])
    monkeypatch.setattr("fedddp.telemetry.telemetry.time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = Stopwatch(synced_at=10.0)
    clock.arrived()
    clock.aggregated(RoundReport(*[torch.zeros(1)] * 3, (), (2.5, 4.0)))
    assert clock.aggregate == 0.5


def test_progress_lines_say_round_accuracy_loss_and_failures(capsys):
    assert progress("off", Plan(12)) == []
    telemetry = Telemetry(progress("lines", Plan(12)))
    tell(telemetry, 3, 0.81234)
    tell(telemetry, 4)
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.match(
        r"\d\d:\d\d:\d\d round  3/12  test accuracy 0.8123  train loss 0.8750  1 of 3 clients failed  \d+.\ds$", first
    )
    assert re.search(r" round  4/12  train loss 0.8750  1 of 3 clients failed  \d+.\ds, 0:00 left$", second)
    assert "of memory" in third


def test_a_bar_takes_rounds_and_ends(capsys):
    telemetry = Telemetry(progress("bar", Plan(12, 2)))
    tell(telemetry, 3, 0.81234)
    telemetry.close(None)
    assert "3/12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "shown"), [(0.875, "0.8750"), (9999.0, "9999.0000"), (1.6e12, "1.6e+12"), (1e27, "1e+27")]
)
def test_a_loss_that_is_huge_is_a_short_number(loss, shown, capsys):
    tell(Telemetry(progress("lines", Plan(12))), 3, report=report((loss,) * 3))
    assert f"  train loss {shown}  " in capsys.readouterr().out


def recorded(tmp_path, rounds=5):
    """A run folder with the records of some rounds: the folder, and the lines of metrics.jsonl."""
    folder = RunFolder(tmp_path, resumed=True)
    telemetry = Telemetry([Files(folder, 9)])
    for t in range(1, rounds + 1):
        tell(telemetry, t, 0.5)
    return folder, (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "damage",
    [b"null\n", b"[]\n", b'{"round": true}\n', b'{"round": 3}\n', b"\xff\xfe\x00{\n", b"\n", b'{"round": 3, "te\n'],
)
def test_a_line_that_cannot_be_read_costs_that_line_and_says_so(tmp_path, logged, damage):
    folder, lines = recorded(tmp_path)
    lines[2] = damage
    before = b"".join(lines)
    (tmp_path / "metrics.jsonl").write_bytes(before)
    assert [m["round"] for m in rewind(folder, 4)] == [1, 2, 4]
    (line,) = logged
    assert line.startswith(f"{tmp_path}/metrics.jsonl: line 3 cannot be read, round 3 is missing; the run continues")
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert [m["round"] for m in rewind(folder, 4)] == [1, 2, 4]
    assert "round 3 is missing" in logged[-1]


def test_missing_rounds_are_told_and_a_round_that_is_there_twice_counts_once(tmp_path, logged):
    folder, lines = recorded(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([lines[0], lines[3], lines[0], lines[3]]))
    assert [m["round"] for m in rewind(folder, 5)] == [1, 4]
    (line,) = logged
    assert "metrics.jsonl: round 2-3, 5 is missing; the run continues" in line
    assert "cannot be read" not in line


def test_metrics_in_another_encoding_or_lost_are_told(tmp_path, logged):
    folder, lines = recorded(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(b"".join(lines).decode(), encoding="utf-16")
    assert rewind(folder, 5) == []
    assert "line 1-5 cannot be read, round 1-5 is missing" in logged[-1]
    (tmp_path / "metrics.jsonl").unlink()
    assert rewind(folder, 5) == []
    assert logged[-1].endswith("metrics.jsonl: round 1-5 is missing; the run continues, its summary is without that")


def test_what_a_kill_leaves_behind_is_no_loss(tmp_path, logged):
    folder, lines = recorded(tmp_path)
    for cut in (lines[4][:30], lines[4].rstrip()):
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:4]) + cut)
        assert [m["round"] for m in rewind(folder, 4)] == [1, 2, 3, 4]
    assert logged == []
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:4]).rstrip())
    assert [m["round"] for m in rewind(folder, 4)] == [1, 2, 3, 4]
    assert logged == []
