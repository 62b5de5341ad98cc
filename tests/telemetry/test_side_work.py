"""fedddp.telemetry: work beside the training never ends it, and what can be written is."""

import errno
import json
import logging
import os
import sys
import threading

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import fedddp
from fedddp.comm.interrupt import Interrupted
from fedddp.data import Excerpt
from fedddp.errors import NothingLearned
from fedddp.evaluation.server import Mistake, Score
from fedddp.telemetry import Beside, Divergence, InBackground, SideWork, figures, lasting_output
from fedddp.telemetry.tensorboard import TensorBoard
from fedddp.telemetry.terminal import Outlet
from fedddp.types import RoundReport
from tests.helpers.inputs import KINDS, MLP, Kind
from tests.helpers.support import Recorder

pytestmark = pytest.mark.slow

QUIET = {"run": {"device": "cpu", "threads": 1}, "telemetry": {"progress": "off"}, "checkpoint": {"every": 0}}


@pytest.fixture
def said():
    """What fedddp logs from INFO on."""
    lines, logger = [], logging.getLogger("fedddp")
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def steps(events, tag="1 learning/accuracy test"):
    return [event.step for event in events.Scalars(tag)]


def dataset(shape, *args, **kwargs):
    return Kind(shape).dataset(*args, **kwargs)


def train(tmp_path, data, **sections):
    """Two rounds with default telemetry, but for the lines of progress."""
    given = {"data": {"partition": {"num_clients": 3}}, "model": MLP} | sections
    return fedddp.run(QUIET, {"run.dir": str(tmp_path)}, rounds=2, dataset=data, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_any_shape_train_with_default_telemetry(kind, tmp_path, said):
    data = KINDS[kind].dataset()
    result, shape = train(tmp_path, data, **KINDS[kind].sections), data.train.x.shape[1:]
    events, tags = read(result.folder), read(result.folder).Tags()["images"]
    assert steps(events) == [1, 2]
    assert ("1 learning/picture: worst mistakes" in tags) == (len(shape) == 3 and shape[0] in (1, 3))
    assert {"1 learning/picture: confusion", "2 clients/partition"} <= set(tags)
    assert len([line for line in said if "are not pictures" in line]) == (
        "1 learning/picture: worst mistakes" not in tags
    )
    assert not [line for line in said if "failed" in line]


@pytest.mark.parametrize("classes", [100, 101, 5000])
def test_many_classes_have_no_matrix_and_no_picture_of_each(classes, tmp_path):
    result = train(tmp_path, dataset((2, 3), classes, num_train=2 * classes), evaluate={"every": 1})
    events = read(result.folder)
    assert steps(events, "1 learning/loss test") == [1, 2]
    for picture in ("confusion", "accuracy of classes"):
        assert (f"1 learning/picture: {picture}" in events.Tags()["images"]) == (classes <= 100)


@pytest.mark.parametrize(
    ("model", "lr", "epochs"),
    [("mlp", 1e8, 5), ("mlp", 1e9, 5), ("mlp", 1e9, 30), ("svm", 1e9, 5), ("logistic", 1e8, 5)],
)
def test_a_run_that_diverges_is_written_to_its_end_and_told_why(model, lr, epochs, tmp_path, said):
    """inf and NaN in losses and updates; only a run in which nothing at all was learned is a failure."""
    given = {"model": model, "client": {"optimizer": {"lr": lr}, "local_epochs": epochs}}
    rounds = 2
    try:
        train(tmp_path, dataset((1, 4, 4), num_train=60), **given)
    except NothingLearned:
        rounds = 1
    (folder,) = tmp_path.iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == rounds
    assert ("4 cost/seconds, total" in read(folder).Tags()["scalars"]) == (rounds == 2)
    assert [line for line in said if "client.optimizer.lr" in line]
    assert not [line for line in said if "TensorBoard" in line]


@pytest.mark.parametrize("values", [[1e30] * 3, [torch.inf, torch.nan], [0.5, torch.inf], [], [-1e38, 1e38]])
def test_a_histogram_takes_any_numbers(values, tmp_path, said):
    numbers = torch.tensor(values, dtype=torch.float64)
    ids = tuple(range(len(values)))
    report = RoundReport(numbers, numbers, torch.ones(len(values), dtype=torch.int64), (), (0.5,), ids=ids)
    pages = board(tmp_path)
    pages.round(record(report=report))
    pages.close(None)
    assert said == []


@pytest.mark.parametrize(
    ("loss", "warns"), [(2.3, False), (1e4, False), (2e4, True), (torch.inf, True), (torch.nan, True), (None, False)]
)
def test_divergence_is_said_once(loss, warns, said):
    watch = Divergence()
    for t in (1, 2):
        watch.round(record(t, score=None if loss is None else Score({"accuracy": 0.1}, loss, torch.eye(2))))
    watch.close(None)
    assert len(said) == warns
    assert all("client.optimizer.lr" in line and "client.clip_norm" in line for line in said)


@pytest.mark.parametrize(("loss", "r2", "warns"), [(4e10, 0.5, False), (4e10, -3.0, False), (4e10, -1e5, True)])
def test_the_loss_of_a_regression_has_the_unit_of_its_targets_and_is_compared_with_guessing(loss, r2, warns, said):
    Divergence().round(record(1, score=Score({"r2": r2}, loss, torch.eye(0))))
    assert len(said) == warns


def board(folder):
    owners = Excerpt(np.arange(2), np.array([[3, 0], [1, 5]]), 2)
    return TensorBoard(folder / "tensorboard", 0, "", {}, owners, SideWork())


def record(t=1, report=None, score=None):
    from tests.telemetry.test_tensorboard import record as whole

    made = whole(t)
    return type(made)(made.metrics, report or made.report, score)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILING = {
    "a full disk": "tensorboard.summary.writer.record_writer.RecordWriter.write",
    "no folder": "tensorboard.summary.writer.event_file_writer.EventFileWriter.__init__",
    "no pictures": "matplotlib.figure.Figure.subplots",
    "no histograms": "torch.utils.tensorboard.SummaryWriter.add_histogram",
    "no end": "torch.utils.tensorboard.SummaryWriter.close",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("what", FAILING)
def test_what_fails_under_tensorboard_is_said_once_and_files_hold_everything(what, tmp_path, monkeypatch, said):
    monkeypatch.setattr(FAILING[what], full)
    result = train(tmp_path, dataset((1, 4, 4)))
    assert len([line for line in said if "No space left" in line]) == 1
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((result.folder / "status.json").read_text())["state"] == "done"
    if what in ("no pictures", "no histograms"):  # the rest of the pages
        assert steps(read(result.folder)) == [1, 2]


def test_a_disk_that_fills_up_under_tensorboard_is_one_warning_and_no_traceback_of_its_thread(
    tmp_path, monkeypatch, said
):
    printed, room, write = [], iter(range(9)), RecordWriter.write
    monkeypatch.setattr(threading, "excepthook", printed.append)
    monkeypatch.setattr(RecordWriter, "write", lambda *args: full() if next(room, None) is None else write(*args))
    assert train(tmp_path, dataset((1, 4, 4))).summary["rounds"] == 2
    assert len([line for line in said if "No space left" in line]) == 1
    assert not printed


def test_tensorboard_that_is_not_installed_costs_its_pages(tmp_path, monkeypatch, said):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "fedddp.telemetry.tensorboard", raising=False)
    result = train(tmp_path, dataset((1, 4, 4)))
    assert result.summary["rounds"] == 2
    assert [line for line in said if line.startswith("TensorBoard: failed (ModuleNotFoundError")]


class Bad(Recorder):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def round(self, record):
        super().round(record)
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no picture"), BrokenPipeError(32, "Broken pipe"), MemoryError()])
@pytest.mark.parametrize("wrap", [lambda sink: sink, InBackground], ids=["here", "in the background"])
def test_an_error_of_side_work_is_a_warning_given_once(wrap, error, said):
    sink = Bad(error)
    beside = wrap(Beside("pages", sink, SideWork()))
    for t in (1, 2, 3):
        beside.round(t)
    beside.close(None)
    assert (sink.records, sink.closed) == ([1, 2, 3], [None])
    assert len(said) == 1
    assert said[0].startswith(f"pages: failed ({type(error).__name__}")


def test_a_request_to_stop_is_no_error():
    with pytest.raises(Interrupted), SideWork()("pages"):
        raise Interrupted("SIGTERM")


def test_a_sink_of_ones_own_is_not_side_work(tmp_path):
    """It may want to stop a search for parameters."""
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, dataset((3,)), sinks=[Bad(ZeroDivisionError())])


@pytest.mark.parametrize("kind", [BrokenPipeError, OSError, ValueError])
def test_output_that_fails_is_dropped_and_said_once(kind, said):
    class Closed:
        def write(self, *_):
            raise kind("gone")

        flush = fileno = write

    outlet = Outlet("stdout", Closed())
    for _ in range(3):
        print("round", file=outlet, flush=True)
    assert said == ["stdout: cannot be written (gone); nothing more is printed there, the program continues"]
    assert not outlet.isatty()


def test_letters_that_a_terminal_cannot_show_are_escaped(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        print("é", file=Outlet("stdout", file))
    assert (tmp_path / "out").read_text() == "\\xe9\n"


def test_output_is_what_it_was_after_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    out = sys.stdout

    @lasting_output()
    def program():
        print("one")
        print("two", file=sys.stderr)
        return sys.stdout

    assert program() is not out
    assert (sys.stdout, sys.stderr) == (out, None)
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize(
    ("image", "low", "high"),
    [
        (torch.tensor([[[0, 255]]] * 3, dtype=torch.uint8), 0, 1),
        (torch.tensor([[[0, 51]]] * 3, dtype=torch.uint8), 0, 0.2),
        (torch.tensor([[[-3.0, 9.0]]] * 3), 0, 1),
        (torch.tensor([[[0.5, 0.5]]] * 3), 0, 0),
    ],
)
def test_colours_are_shown_on_their_scale(image, low, high):
    figure = figures.mistakes([Mistake(image, 0, 1, 2.0)], 1)
    shown = figure.axes[0].images[0].get_array()
    assert [float(shown.min()), float(shown.max())] == pytest.approx([low, high])
