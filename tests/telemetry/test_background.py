"""fedddp.telemetry.beside.Background, and what is written by it: checkpoints and TensorBoard's pages."""

import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedddp.checkpoints import checkpoint
from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.checkpoints.durable import writing
from fedddp.checkpoints.saved import newest
from fedddp.clients import ClientStore
from fedddp.comm import Comm, interrupt
from fedddp.comm.interrupt import Interrupted
from fedddp.federation import federate
from fedddp.telemetry import InBackground
from fedddp.telemetry.beside import Background
from fedddp.types import ServerState
from tests.helpers.support import assemble, few_digits, flat
from tests.helpers.waiting import until


class Gate:
    """Work that notes that it was begun, and done when it is let."""

    def __init__(self):
        self.begun, self.done, self.reached, self.open = [], [], threading.Event(), threading.Event()

    def __call__(self, number, error=None):
        self.begun.append(number)
        self.reached.set()
        assert self.open.wait(60)
        if error:
            raise error
        self.done.append(number)


def blocked(call, *args):
    """A thread in ``call``, which waits for work of another thread and has not returned."""
    thread = threading.Thread(target=call, args=args)
    thread.start()
    waiting = {Future.result.__code__, Background._await.__code__}
    until(lambda: not thread.is_alive() or not waiting.isdisjoint(calls(thread)))
    assert thread.is_alive()
    return thread


def calls(thread):
    """What ``thread`` is in, innermost first."""
    frame = sys._current_frames().get(thread.ident)
    while frame:
        yield frame.f_code
        frame = frame.f_back


def test_work_is_done_in_order_beside_the_caller():
    work, background = Gate(), Background(backlog=5)
    for number in range(4):
        background.run(work, number)
    assert work.done == []
    work.open.set()
    background.wait()
    assert work.begun == work.done == [0, 1, 2, 3]
    background.wait()


@pytest.mark.parametrize("backlog", [0, 2])
def test_no_more_wait_than_the_backlog_allows(backlog):
    """One under way and ``backlog`` waiting: the next one is not taken before the first is done."""
    work, background = Gate(), Background(backlog=backlog)
    for number in range(backlog + 1):
        background.run(work, number)
    thread = blocked(background.run, work, backlog + 1)
    assert work.begun == [0]
    work.open.set()
    thread.join()
    background.wait()
    assert work.done == list(range(backlog + 2))


@pytest.mark.parametrize("ask", ["run", "wait"])
def test_an_error_surfaces_in_the_next_call_and_once(ask):
    work, background = Gate(), Background()
    work.open.set()
    background.run(work, 0, OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        background.wait() if ask == "wait" else background.run(work, 1)
    background.run(work, 2)
    background.wait()
    assert work.done == [2]


def server(t):
    return ServerState(torch.full((3,), float(t)), flat(3), {}, t)


def checkpoints(folder, **more):
    return Checkpoints(folder, {}, Comm.alone(), every=1, keep=3, stateful=False, **more)


@pytest.fixture
def slow(monkeypatch):
    """A disk whose files are written when the gate is open; ``slow.begun`` are their names."""
    gate, write = Gate(), checkpoint.write_tensors

    def gated(path, tensors):
        gate(path.parent.name)
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", gated)
    yield gate
    gate.open.set()


STORE = ClientStore()


def test_a_round_does_not_wait_for_its_checkpoint_and_the_last_one_does(tmp_path, slow):
    kept = checkpoints(tmp_path)
    kept.after_round(server(1), STORE, None, last=False)
    assert (kept.written, newest(tmp_path)) == (0, None)
    thread = blocked(lambda: kept.after_round(server(2), STORE, None, last=True))
    slow.open.set()
    thread.join()
    assert kept.written == newest(tmp_path).round == 2
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["round-000001", "round-000002"]


@pytest.mark.parametrize("then", ["round", "last", "flush"])
def test_a_checkpoint_that_cannot_be_written_is_an_oserror(tmp_path, then):
    kept = checkpoints(tmp_path)
    kept.after_round(server(1), STORE, None, last=False)
    kept.wait()
    (tmp_path / "checkpoints/.round-000002").write_text("in the way")
    if then != "last":
        kept.after_round(server(2), STORE, None, last=False)
    with pytest.raises(OSError, match=r"\.round-000002"):
        {
            "round": lambda: kept.after_round(server(3), STORE, None, last=False),
            "last": lambda: kept.after_round(server(2), STORE, None, last=True),
            "flush": kept.flush,
        }[then]()
    assert kept.written == newest(tmp_path).round == 1


def test_an_interrupt_while_one_is_being_written_ends_with_it_whole(tmp_path, slow, monkeypatch):
    """Asked to stop in round 2, with the checkpoint of round 1 half written."""
    settings = {"model": {"name": "mlp", "hidden": 6}, "run": {"rounds": 3, "name": "cut"}, "checkpoint": {"every": 1}}
    f, first = assemble(tmp_path, few_digits(20), (10, 10), **settings)

    class Stopped:
        data, width = f.trainer.data, f.trainer.width

        def on(self, ids, round):
            if round == 1:
                assert slow.reached.wait(60)
                interrupt.request("SIGTERM")
            return f.trainer.on(ids, round)

    with monkeypatch.context() as asked:
        asked.setattr(interrupt, "_reason", None)
        with pytest.raises(Interrupted):
            federate(replace(f, trainer=Stopped()), first)
    assert (slow.begun, slow.done) == ([".round-000001"], [])
    assert newest(tmp_path / "cut") is None
    threading.Timer(0.1, slow.open.set).start()
    assert f.checkpoints.flush() == 1
    assert newest(tmp_path / "cut").round == 1
    assert slow.begun == [".round-000001"]


class Sink:
    """A sink that draws when it is let."""

    def __init__(self):
        self.gate = Gate()
        self.round, self.told = self.gate, self.gate.done

    def close(self, summary):
        self.told.append(("closed", summary))


@pytest.mark.parametrize("summary", [None, {"rounds": 3}])
def test_a_sink_in_the_background_is_told_in_order_and_closed_at_the_end(summary):
    sink = Sink()
    behind = InBackground(sink)
    for number in range(3):
        behind.round(number)
    thread = blocked(behind.close, summary)
    assert sink.told == []
    sink.gate.open.set()
    thread.join()
    assert sink.told == [0, 1, 2, ("closed", summary)]


def test_an_error_of_a_sink_in_the_background_is_not_lost():
    sink = Sink()
    sink.round = lambda record: 1 / 0
    behind = InBackground(sink)
    behind.round(1)
    with pytest.raises(ZeroDivisionError):
        behind.close(None)


def test_tensorboard_is_told_every_round_by_the_time_it_is_closed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"model": {"name": "logistic"}, "run": {"rounds": 4, "name": "pages"}}
    f, first = assemble(tmp_path, few_digits(20), (10, 10), **settings, telemetry={"tensorboard": True})
    federate(f, first)
    f.telemetry.close(None)
    events = EventAccumulator(str(tmp_path / "pages/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("1 learning/loss train")] == [1, 2, 3, 4]


def test_waiting_for_a_slow_disk_passes_safe_points_and_says_so_once(monkeypatch, logged):
    monkeypatch.setattr("fedddp.telemetry.beside.SLOW", 0.2)
    work, background = Gate(), Background("checkpoints")
    background.run(work, 0)
    before = interrupt.passed
    thread = blocked(background.run, work, 1)
    until(lambda: logged)
    assert interrupt.passed > before
    work.open.set()
    thread.join()
    background.wait()
    assert logged == ["training waits for checkpoints to be written: the disk is slow"]


def test_a_request_to_stop_is_noticed_while_waiting_for_a_disk_and_the_round_is_written(tmp_path, slow, monkeypatch):
    kept = checkpoints(tmp_path)
    kept.after_round(server(1), STORE, None, last=False)
    monkeypatch.setattr(interrupt, "_reason", "SIGTERM")
    with pytest.raises(Interrupted):
        kept.after_round(server(2), STORE, None, last=False)
    slow.open.set()
    assert kept.flush() == newest(tmp_path).round == 2


def test_a_heartbeat_is_renewed_while_a_file_is_being_written():
    before = interrupt.progress()
    assert interrupt.progress() == before
    with writing("a file", "wait"):
        assert interrupt.progress() > before
    before = interrupt.progress()
    assert interrupt.progress() == before


def test_a_checkpoint_is_on_disk_after_the_metrics_of_its_round(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}")
    done, sync, rename = [], checkpoint.sync, Path.rename
    monkeypatch.setattr(checkpoint, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append("rename"), rename(path, to)))
    checkpoints(tmp_path).after_round(server(1), STORE, None, last=True)
    assert done == ["metrics.jsonl", tmp_path.name, "rename", "checkpoints"]
