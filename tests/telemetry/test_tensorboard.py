"""fedddp.telemetry.tensorboard: the pages of a run, read back with TensorBoard's own reader."""

import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from fedddp.data import Excerpt
from fedddp.evaluation.server import Mistake, Score
from fedddp.telemetry import RoundRecord, SideWork, figures
from fedddp.telemetry.tensorboard import TensorBoard
from fedddp.types import RoundReport

CONFUSION = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
SCALARS = {
    *("accuracy/test", "loss/test", "accuracy/train", "loss/train", "round/participants", "round/failures"),
    *(
        "round/examples",
        "round/imbalance",
        "round/bytes_sent_per_rank",
        "seconds/round",
        "seconds/train",
        "seconds/aggregate",
    ),
    *("seconds/evaluate", "class accuracy/0", "class accuracy/1", "sent/aggregate", "sent/evaluate"),
}


def record(t, evaluated=True):
    metrics = {
        **{"round": t, "test_accuracy": t / 10 if evaluated else None, "test_loss": 0.7 if evaluated else None},
        **{"train_loss": 0.5, "participants": 2, "failures": 1, "examples": 40, "seconds": 1.0},
        **{
            "seconds_train": 0.5,
            "seconds_aggregate": 0.25,
            "seconds_evaluate": 0.125,
            "imbalance": 1.0,
            "bytes_sent": 80,
            "sent": {"aggregate": 72, "evaluate": 8},
        },
    }
    loss = torch.tensor([0.5, torch.nan, 1.0])
    report = RoundReport(loss, loss, torch.tensor([10, 20, 30]), (1,), (0.5,))
    mistake = Mistake(torch.zeros(1, 4, 4, dtype=torch.uint8), 0, 1, 2.5)
    return RoundRecord(metrics, report, Score({"accuracy": t / 10}, 0.7, CONFUSION, (mistake,)) if evaluated else None)


def board(folder, done=0, **more):
    owners = Excerpt(np.arange(2), np.array([[3, 0], [1, 5]]), 2)
    keys = {"run.seed": 0, "model.name": "cnn", "off": None}
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


def test_every_scalar_has_its_page(events):
    tags = set(events.Tags()["scalars"])
    assert tags >= SCALARS
    compared = ("rounds", "final_test_accuracy", "best_test_accuracy", "seconds_total")
    assert tags - SCALARS == {f"summary/{key}" for key in compared}
    assert steps(events, "accuracy/test") == [1, 2]
    assert steps(events, "loss/train") == [1, 2, 3]
    assert [e.value for e in events.Scalars("class accuracy/0")] == [0.75, 0.75]
    assert [e.value for e in events.Scalars("round/bytes_sent_per_rank")] == [80, 80, 80]
    assert events.Scalars("summary/final_test_accuracy")[0].value == pytest.approx(0.2)


def test_pictures_come_in_rounds_of_round_numbers(events):
    assert set(events.Tags()["images"]) == {"partition", "confusion", "worst mistakes"}
    assert [e.step for e in events.Images("confusion")] == [1, 2]
    assert [e.step for e in events.Images("partition")] == [0]


def test_histograms_text_and_hyperparameters_are_there(events):
    assert set(events.Tags()["distributions"]) >= {"clients/train_loss", "clients/examples"}
    assert events.Histograms("clients/train_loss")[0].histogram_value.num == 2
    (config,) = events.Tensors("config/text_summary")
    assert b'model = "cnn"' in config.tensor_proto.string_val[0]
    assert b"run.seed" in events.PluginTagToContent("hparams")["_hparams_/session_start_info"]


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
    assert [e.step for e in read(tmp_path).Images("confusion")] == [3]


@pytest.mark.parametrize(("done", "trained", "evaluated"), [(4, [3, 4, 6], [3, 4]), (0, [6], [])])
def test_after_a_resume_later_rounds_of_the_first_attempt_are_hidden(tmp_path, monkeypatch, done, trained, evaluated):
    """Also where no checkpoint was whole and the run starts again."""
    pages = board(tmp_path)
    for t in (3, 4, 5):
        pages.round(record(t))
    pages.close(None)
    clock = time.time  # TensorBoard reads the files of one second in the order of their names
    monkeypatch.setattr(time, "time", lambda: clock() + 1)
    pages = board(tmp_path, done)
    pages.round(record(6, evaluated=False))
    pages.close(None)
    assert steps(read(tmp_path), "loss/train") == trained
    assert steps(read(tmp_path), "accuracy/test") == evaluated


def test_epsilon_stands_beside_what_it_depends_on_said_once(tmp_path):
    pages = board(tmp_path)
    for t in (1, 2):
        spent = record(t)
        spent.metrics.update(epsilon=0.5 * t, epsilon_terms="at delta 1e-05 (one example more or less)")
        pages.round(spent)
    pages.close(None)
    events = read(tmp_path)
    assert [e.value for e in events.Scalars("privacy/epsilon")] == [0.5, 1.0]
    (terms,) = events.Tensors("privacy/terms/text_summary")
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
