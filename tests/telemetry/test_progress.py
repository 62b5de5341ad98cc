"""What is printed while a run goes on: time left, the bar's two lines, lines of a log."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedddp.telemetry import Plan, Telemetry
from fedddp.telemetry.pace import Pace, clock
from fedddp.telemetry.progress import ProgressBar, ProgressLines, sparkline, summary_table

COLUMNS = 80


@pytest.fixture
def now(monkeypatch):
    """The seconds of a clock that stands still until a test moves it."""
    time = [0.0]
    monkeypatch.setattr("fedddp.telemetry.pace.time", SimpleNamespace(perf_counter=lambda: time[0]))
    return time


def record(t, accuracy=0.97851, **more):
    metrics = {
        **{"round": t, "test_accuracy": accuracy, "train_loss": 0.22164, "failures": 0, "participants": 10},
        **{"seconds": 25.1, "seconds_evaluate": 1.2, "bytes_sent": 59_900_000},
    }
    return SimpleNamespace(metrics=metrics | more, clients=None, score=None)


WORKLOADS = {  # the rounds' seconds and those of an evaluation of each kind
    "evaluated after each round": (Plan(20), [9.0] + [2.0] * 19, (0.5,)),
    "evaluation is slow and has not been seen": (Plan(20, every=(5,), evaluation=3.0), [9.0] + [2.0] * 19, (6.2,)),
    "clients are scored, too": (Plan(30, every=(1, 10)), [5.0] + [1.0, 1.2] * 14 + [1.0], (0.4, 2.0)),
    "only after the last round": (Plan(10, every=(0,), evaluation=1.0), [2.0] * 10, (1.5,)),
    "resumed": (Plan(30, done=20), [3.0] + [1.0] * 9, (1.0,)),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_time_left_is_right_within_a_quarter_from_the_second_round_on(workload, now):
    plan, seconds, evaluation = WORKLOADS[workload]
    rounds = range(plan.done + 1, plan.rounds + 1)
    evaluated = [sum(x for due, x in zip(plan.due(t), evaluation, strict=True) if due) for t in rounds]
    total, pace, told = sum(seconds) + sum(evaluated), Pace(plan), []
    for t, (own, scored) in enumerate(zip(seconds, evaluated, strict=True), plan.done + 1):
        now[0] += own + scored
        pace.round({"round": t, "seconds_evaluate": scored})
        told.append(pace.left())
        if pace.rounds > 1:
            assert told[-1] == pytest.approx(total - now[0], rel=0.25, abs=1e-6), t
    assert told[0] is None
    assert told[-1] == 0


def test_the_time_left_runs_down_within_a_round(now):
    pace = Pace(Plan(4))
    for t in (1, 2):
        now[0] += 10
        pace.round({"round": t})
    assert pace.left() == 20
    now[0] += 4
    assert pace.left() == 16
    now[0] += 60
    assert pace.left() == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (59.7, "1:00"), (3599, "59:59"), (6000, "1.7 h"), (35_990, "10 h"), (100_000, "28 h")],
)
def test_durations(seconds, shown):
    assert clock(seconds) == shown


def bar_of(plan, monkeypatch, width=COLUMNS):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(sys.modules[ProgressBar.__module__], "console", lambda *_: console)
    return ProgressBar(plan), text


def test_the_bar_fits_80_columns_and_names_what_it_shows(monkeypatch, now):
    bar, text = bar_of(Plan(1000, lr=lambda t: 0.1 / t), monkeypatch)
    for t in (1, 2):
        now[0] += 400
        bar.round(record(t, epsilon=12.3456))
    bar.clients(37, 100)
    text.seek(0)
    text.truncate()
    bar._progress.refresh()
    bar.close(None)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip() for line in text.getvalue().splitlines()]
    shown = [line for line in lines if line]
    assert max(map(len, shown)) <= COLUMNS
    assert re.fullmatch(r"round    2/1000 .+ client 37/100 elapsed \d:\d\d:\d\d left 111 h", shown[0])
    assert shown[1] == "test accuracy 0.9785  train loss 0.2216  epsilon 12.346  lr 0.05"


def test_a_line_has_the_time_of_day_and_the_time_left_and_fits_80_columns(capsys, now):
    lines = ProgressLines(Plan(100))
    for t in (1, 2, 3):
        now[0] += 25
        lines.round(record(t))
    first, second, costs, third = capsys.readouterr().out.splitlines()
    assert max(map(len, (first, second, third))) <= COLUMNS
    stamp = r"\d\d:\d\d:\d\d round   {}/100  test accuracy 0.9785  train loss 0.2216  25s"
    assert re.fullmatch(stamp.format(1), first)
    assert re.fullmatch(stamp.format(2) + ", 40:50 left", second)
    assert re.fullmatch(r"  each rank sends 59.9 MB per round; rank 0 has taken up to \d.* of memory", costs)
    assert third.endswith("40:25 left")


def test_clients_of_a_round_are_counted_and_only_where_time_may_be_told():
    told = []
    telemetry = Telemetry(during=lambda done, of: told.append((done, of)))
    assert list(telemetry.following([(1, 2), (3,), (1,)], 3)) == [(1, 2), (3,), (1,)]
    assert told == [(0, 3), (2, 3), (3, 3)]
    told.clear()
    assert list(Telemetry(timed=False, during=lambda *_: told.append(1)).following([(1,)], 1)) == [(1,)]
    assert told == []


def test_the_summary_leaves_out_what_has_no_value_and_shows_the_best_round(capsys):
    mae = enumerate((5.0, 2.0, 3.0), 1)
    history = [{"round": t, "test_mae": x, "test_accuracy": None, "test_loss": 0.1} for t, x in mae]
    summary_table({"rounds": 3, "final_test_accuracy": None, "failures": {}, "model_sha256": "ab" * 32}, history)
    out = capsys.readouterr().out
    assert "accuracy" not in out
    assert re.search(r"best round +│ 2 \(test mae 2.0000\)", out)
    assert re.search(r"test mae by round +│ █▁▃ ", out)
    assert re.search(r"failures +│ 0", out)
    assert "ab" * 32 in out
    summary_table({"rounds": 1}, [{"round": 1, "test_accuracy": None, "test_loss": None}])
    assert "best" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "bars"),
    [([0.5], "▁"), ([1, 1], "▁▁"), ([0, 7, 3.4], "▁█▄"), (list(range(1000)), 40), (list(range(41)), 40)],
)
def test_a_sparkline(values, bars):
    line = sparkline(values)
    assert line == bars or len(line) == bars
    if isinstance(bars, int):
        assert line[-1] == "█"
        assert list(line) == sorted(line)
