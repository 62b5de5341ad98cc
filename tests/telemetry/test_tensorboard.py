"""fedddp.telemetry.tensorboard: the pages of a run, read back with TensorBoard's own reader."""

import os
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2

from fedddp.data import Excerpt
from fedddp.evaluation.server import Mistake, Score
from fedddp.tasks.metrics import Target
from fedddp.telemetry import RoundRecord, SideWork, figures
from fedddp.telemetry.event_files import Continuation
from fedddp.telemetry.series import Naming, layout, past
from fedddp.telemetry.tensorboard import TensorBoard
from fedddp.types import RoundReport, SummedReport

CONFUSION = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
SCALARS = {
    *(f"1 learning/{name}" for name in ("accuracy test", "accuracy train", "loss test", "learning rate")),
    *(f"2 clients/loss, {name}" for name in ("10th percentile", "median", "90th percentile")),
    *("2 clients/update norm", "2 clients/update cosine"),
    *("4 cost/bytes sent per rank, total", "4 cost/seconds, total", "5 system/seconds train"),
}
"""What changes from round to round in the runs below; all else is constant."""


def record(t, evaluated=True, participants=2):
    metrics = {
        **{"round": t, "test_accuracy": t / 10 if evaluated else None, "test_loss": 0.7 / t if evaluated else None},
        **{"train_loss": 0.5, "participants": participants, "failures": 1, "examples": 40, "seconds": 1.0},
        **{
            "seconds_train": 0.5 * t,
            "seconds_aggregate": 0.25,
            "seconds_evaluate": 0.125,
            "imbalance": 1.0,
            "bytes_sent": 80,
            "sent": {"aggregate": 72, "evaluate": 8},
            "update_norm": 2.0 * t,
            "update_cosine": 1 / t,
        },
    }
    loss = torch.tensor([0.5, torch.nan, 1.0]) / t
    report = RoundReport(loss, loss, torch.tensor([10, 20, 30]), (1,), (0.5,), ids=(0, 1, 5))
    mistake = Mistake(torch.zeros(1, 4, 4, dtype=torch.uint8), 0, 1, 2.5)
    score = Score({"accuracy": t / 10}, 0.7 / t, CONFUSION, (mistake,))
    return RoundRecord(metrics, report, score if evaluated else None)


def board(folder, done=0, **more):
    owners = Excerpt(np.array([0, 1, 5, 6]), np.array([[3, 0], [1, 5], [2, 2], [0, 1]]), 7)
    keys = {"run.seed": 0, "run.name": "mine", "model.name": "cnn", "off": None}
    more = {"words": "two clients", "rate": lambda t: 1 / t, **more}
    return TensorBoard(folder, done, 'model = "cnn"\n', keys, owners, SideWork(), **more)


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def steps(events, tag):
    return [event.step for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Three rounds, the last one not evaluated, and the end of the run."""
    folder = tmp_path_factory.mktemp("board")
    pages = board(folder)
    for t in (1, 2, 3):
        pages.round(record(t, evaluated=t < 3))
    summary = {"rounds": 3, "final_test_accuracy": 0.2, "best_test_accuracy": 0.2, "model_sha256": "ab"}
    pages.close({**summary, "rounds_to_target": None, "seconds_total": 3.0})
    return read(folder)


def test_scalars_that_change_have_a_card_in_their_group_and_constant_ones_have_none(events):
    assert set(events.Tags()["scalars"]) == SCALARS
    assert steps(events, "1 learning/accuracy test") == [1, 2]
    assert steps(events, "2 clients/loss, median") == [1, 2, 3]
    assert next(e.value for e in events.Scalars("2 clients/loss, 90th percentile")) == pytest.approx(0.95)
    assert [e.value for e in events.Scalars("4 cost/bytes sent per rank, total")] == [80, 160, 240]
    assert [e.value for e in events.Scalars("1 learning/learning rate")] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_a_value_that_stays_the_same_at_first_is_written_when_it_changes(tmp_path):
    pages = board(tmp_path)
    for t in (1, 2, 3, 4):
        pages.round(record(t, participants=2 if t < 4 else 1))
    pages.close(None)
    points = [(e.step, e.value) for e in read(tmp_path).Scalars("2 clients/participants")]
    assert points == [(1, 2), (3, 2), (4, 1)]  # the line between equal points is theirs


def test_pictures_come_in_rounds_of_round_numbers(events):
    learning = {f"1 learning/picture: {name}" for name in ("accuracy of classes", "confusion", "worst mistakes")}
    assert set(events.Tags()["images"]) == learning | {"2 clients/partition", "2 clients/who took part"}
    assert [e.step for e in events.Images("1 learning/picture: confusion")] == [1, 2]
    assert [e.step for e in events.Images("2 clients/partition")] == [0]
    assert [e.step for e in events.Images("2 clients/who took part")] == [3]


def test_histograms_texts_and_hyperparameters_are_there(events):
    assert events.Tags()["distributions"] == ["2 clients/training loss"]
    assert events.Histograms("2 clients/training loss")[0].histogram_value.num == 2
    (words,) = events.Tensors("0 run/1 in words/text_summary")
    assert words.tensor_proto.string_val[0] == b"two clients"
    (config,) = events.Tensors("0 run/3 all keys/text_summary")
    assert b'model = "cnn"' in config.tensor_proto.string_val[0]
    keys = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"run.seed" in keys
    assert b"3 model.name" in keys
    assert b"run.name" not in keys


def test_the_custom_page_puts_into_one_chart_what_is_compared(events):
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    page = layout_pb2.Layout.FromString(content)
    charts = {chart.title: chart for section in page.category for chart in section.chart}
    (pattern,) = charts["accuracy: test, train, target"].multiline.tag
    both = [
        tag for tag in ("accuracy test", "accuracy train", "target accuracy") if re.match(pattern, f"1 learning/{tag}")
    ]
    assert len(both) == 3
    (fan,) = charts["clients' training loss: 10th to 90th percentile"].margin.series
    assert (fan.value, fan.lower) == ("2 clients/loss, median", "2 clients/loss, 10th percentile")
    assert not any("epsilon" in title for title in charts)


def test_accuracy_and_epsilon_are_one_chart_and_the_target_is_a_line(tmp_path):
    assert list(layout(["1 learning/accuracy test", "3 privacy/epsilon"], "accuracy")["privacy"]) == [
        "accuracy and epsilon"
    ]
    pages = board(tmp_path, target=Target("accuracy", 0.9))
    for t in (1, 2):
        pages.round(record(t))
    pages.close(None)
    assert [e.value for e in read(tmp_path).Scalars("1 learning/target accuracy")] == [pytest.approx(0.9)] * 2


@pytest.mark.parametrize("timed", [True, False])
def test_events_have_the_time_of_their_round_or_that_of_the_first(tmp_path, monkeypatch, timed):
    now = iter(range(10**6, 2 * 10**6))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    pages = board(tmp_path, timed=timed)
    for t in (3, 4):
        pages.round(record(t))
    pages.close(None)
    events = EventFileLoader(str(next(tmp_path.glob("events*")))).Load()
    times = {event.wall_time for event in events if event.HasField("summary")}
    assert (len(times) == 1) != timed


def test_the_last_evaluation_is_drawn_at_the_end(tmp_path):
    pages = board(tmp_path)
    pages.round(record(3))
    pages.close(None)
    assert [e.step for e in read(tmp_path).Images("1 learning/picture: confusion")] == [3]


@pytest.mark.parametrize(("done", "trained"), [(4, [3, 4, 6, 7]), (0, [6, 7])])
def test_after_a_resume_later_rounds_of_the_first_attempt_are_hidden(tmp_path, monkeypatch, done, trained):
    """Also where no checkpoint was whole and the run starts again."""
    pages = board(tmp_path)
    for t in (3, 4, 5):
        pages.round(record(t))
    pages.close(None)
    clock = time.time  # TensorBoard reads the files of one second in the order of their names
    monkeypatch.setattr(time, "time", lambda: clock() + 1)
    history = [record(t).metrics for t in (3, 4)] if done else []
    pages = board(tmp_path, done, history=history)
    for t in (6, 7):
        pages.round(record(t, participants=2 if t < 7 else 1))
    pages.close(None)
    for tag in ("1 learning/accuracy test", "2 clients/loss, median"):
        assert steps(read(tmp_path), tag) == trained
    assert steps(read(tmp_path), "2 clients/participants") == ([3, 6, 7] if done else [6, 7])
    sent = read(tmp_path).Scalars("4 cost/bytes sent per rank, total")[-1].value
    assert sent == (320 if done else 160)


def test_the_single_point_of_one_evaluation_is_kept_for_the_table_of_runs(tmp_path):
    pages = board(tmp_path)
    for t in (1, 2):
        pages.round(record(t, evaluated=t == 2))
    pages.close({"final_test_accuracy": 0.2})
    assert steps(read(tmp_path), "1 learning/accuracy test") == [2]
    assert steps(read(tmp_path), "1 learning/loss test") == []


def test_few_cards_are_enough():
    """All that a run on two ranks shows without privacy, personal models or failures."""
    naming = Naming("accuracy", None, None)
    shown = naming.of_record(record(1))
    constant = {"2 clients/participants", "2 clients/failures"}
    assert len(set(shown) - constant) <= 15
    assert sorted({tag.split("/")[0] for tag in shown}) == ["1 learning", "2 clients", "4 cost", "5 system"]


def test_epsilon_stands_beside_what_it_depends_on_said_once(tmp_path):
    pages = board(tmp_path)
    for t in (1, 2):
        spent = record(t)
        spent.metrics.update(epsilon=0.5 * t, epsilon_terms="at delta 1e-05 (one example more or less)")
        pages.round(spent)
    pages.close(None)
    events = read(tmp_path)
    assert [e.value for e in events.Scalars("3 privacy/epsilon")] == [0.5, 1.0]
    (terms,) = events.Tensors("3 privacy/terms/text_summary")
    assert b"at delta 1e-05 (one example more or less)" in terms.tensor_proto.string_val[0]


@pytest.mark.parametrize("classes", [2, 3, 10, 12])
def test_numbers_in_the_confusion_matrix_can_be_read(classes):
    """Dark on bright and bright on dark, each with its share of the row."""
    counts = torch.ones(classes, classes) + torch.eye(classes) * 200
    counts[0, 1] = 500
    figure = figures.confusion(Score({"accuracy": 0.5}, 1.0, counts), 1)
    axes = figure.axes[0]
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in axes.texts}
    assert len(shown) == classes**2
    for (true, predicted), text in shown.items():
        count = counts[true, predicted]
        assert text.get_text() == f"{int(count)}\n{100 * count / counts[true].sum():.0f}%"
        behind = np.dot(axes.images[0].cmap(axes.images[0].norm(float(count)))[:3], (0.299, 0.587, 0.114))
        assert abs(behind - {"white": 1.0, "black": 0.0}[text.get_color()]) >= 0.5
    assert {text.get_color() for text in axes.texts} == {"white", "black"}


def test_a_class_without_test_examples_has_no_share():
    assert [
        t.get_text()
        for t in figures.confusion(Score({"accuracy": 1.0}, 1.0, torch.diag(torch.tensor([4.0, 0]))), 1).axes[0].texts
    ] == ["4\n100%"]


@pytest.mark.parametrize(("clients", "labels"), [(1, 1), (4, 10), (60, 10), (60, 62)])
def test_bubbles_of_the_partition_fit_into_their_cells(clients, labels):
    counts = np.ones((clients, labels), dtype=np.int64)
    figure = figures.partition(Excerpt(np.arange(clients), counts, clients))
    figure.canvas.draw()
    axes = figure.axes[1]
    wide = (axes.transData.transform((1, 1)) - axes.transData.transform((0, 0))) * 72 / figure.dpi
    (bubbles,) = axes.collections
    assert len(bubbles.get_offsets()) == clients * labels
    assert max(bubbles.get_sizes()) ** 0.5 <= 1.1 * min(wide)


def test_who_took_part_is_drawn_by_client_and_round():
    owners = Excerpt(np.array([0, 1, 5]), np.ones((3, 2), dtype=np.int64), 9)
    image = figures.took_part(owners, {1: {0: True, 5: False}, 2: {1: True}}).axes[0].images[0]
    assert image.get_array().tolist() == [[1, 0], [0, 1], [2, 0]]


def test_where_no_client_may_be_named_nobody_is_drawn(tmp_path):
    pages = board(tmp_path)
    secret = replace(record(1), report=SummedReport((0.5,)))
    pages.round(secret)
    pages.close(None)
    assert "2 clients/who took part" not in read(tmp_path).Tags()["images"]


def killed(tmp_path, rounds, left):
    """The metrics of some rounds, whose event file was cut off after round ``left``."""
    pages, history = board(tmp_path), []
    for t in range(1, rounds + 1):
        if t == left + 1:
            size = next(tmp_path.glob("events*")).stat().st_size
        pages.round(record(t))
        history.append(record(t).metrics)
    pages._writer.close()
    os.truncate(next(tmp_path.glob("events*")), size + 7)  # within an event
    return history


def test_what_a_killed_process_did_not_write_is_written_again(tmp_path):
    history = killed(tmp_path, 5, left=2)
    assert steps(read(tmp_path), "1 learning/accuracy test") == [1, 2]
    pages = board(tmp_path, done=5, history=history)
    pages.round(record(6))
    pages.close(None)
    events = read(tmp_path)
    everywhere = SCALARS - {"1 learning/accuracy train", *(tag for tag in SCALARS if "loss, " in tag)}
    for tag in everywhere:  # the others are not in metrics.jsonl
        assert steps(events, tag) == [1, 2, 3, 4, 5, 6], tag
    assert [e.value for e in events.Scalars("4 cost/seconds, total")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Images("1 learning/picture: confusion")] == [1, 2, 6]


def test_a_hole_in_the_middle_is_filled_and_what_follows_it_stays(tmp_path):
    history = killed(tmp_path, 4, left=2)
    pages = board(tmp_path, done=4)  # as an earlier version resumed, without the metrics
    for t in (5, 6):
        pages.round(record(t))
        history.append(record(t).metrics)
    pages.close(None)
    assert steps(read(tmp_path), "2 clients/update norm") == [1, 2, 5, 6]
    board(tmp_path, done=6, history=history).close(None)
    events = read(tmp_path)
    assert steps(events, "2 clients/update norm") == [1, 2, 3, 4, 5, 6]
    assert steps(events, "2 clients/loss, median") == [1, 2, 5, 6]
    assert [e.step for e in events.Images("1 learning/picture: confusion")] == [1, 2, 5, 6]


def test_a_resume_without_a_loss_writes_nothing_again(tmp_path):
    pages = board(tmp_path)
    history = [record(t, participants=2 if t < 3 else 1).metrics for t in (1, 2, 3)]
    for t in (1, 2, 3):
        pages.round(record(t, participants=2 if t < 3 else 1))
    pages.close(None)
    again = Continuation(tmp_path, 3, past(Naming("accuracy", lambda t: 1 / t, None), history))
    assert (again.since, again._again) == (4, [])


@pytest.mark.parametrize("back", [0, 100_000])
def test_the_order_of_event_files_does_not_depend_on_the_clock(tmp_path, monkeypatch, back):
    pages = board(tmp_path)
    pages.round(record(1))
    pages.close(None)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - back)
    for t in (2, 3):
        pages = board(tmp_path, done=t - 1, history=[record(t).metrics for t in range(1, t)])
        pages.round(record(t))
        pages.close(None)
    assert steps(read(tmp_path), "1 learning/accuracy test") == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 3
