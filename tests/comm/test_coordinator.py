"""Who goes on, as the launcher decides it: with processes that are threads here, and a real store."""

import threading
import time

from fedddp.comm import CommError, LostRank, Place
from fedddp.comm.coordinator import Coordinator, Started
from fedddp.comm.heartbeat import Heartbeat
from fedddp.comm.member import Member, epoch_store
from tests.helpers.waiting import until


class Process:
    """What a `Coordinator` knows of a process."""

    returncode = None

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        until(lambda: self.returncode is not None, timeout or 60)


class Run:
    """The ranks of a run in threads. What a rank does in each epoch is looked up as ``lives[name][epoch]``.

    "ask" lives until somebody asks who is left, and asks too; "ask then die" is killed after that; "hang" is alive
    without a sign; a number is an exit code at once, and so is a dictionary's for the number of ranks, else it asks.
    """

    def __init__(self, monkeypatch, lives, ranks=3, least=1, restarts=0, timeout=0.6):
        self.coordinator = Coordinator([], ranks, "trial", least=least, restarts=restarts, timeout=timeout)
        self.lives, self.timeout, self.ranks = lives, timeout, ranks
        self.places, self.said, self.threads = {}, {}, []
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(self.coordinator._port))
        monkeypatch.setattr("fedddp.comm.coordinator.LAST_WORDS", 0.0)
        monkeypatch.setattr(Started, "signal", lambda started, number: self.end(started.process, -number))
        monkeypatch.setattr(self.coordinator, "_start", self.start)
        self.failed = self.coordinator.run()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def end(self, process, code):
        if process.returncode is None:
            process.returncode = code

    def start(self, number, before=0):
        started = Started(number, before, Process())
        self.coordinator._started.append(started)
        self.threads.append(threading.Thread(target=self.life, args=(started,)))
        self.threads[-1].start()
        return started

    def life(self, started):
        if self.lives[started.name] == "mute":
            return started.process.wait()
        place = Place(started.number, self.ranks, launch=self.coordinator._launch, coordinated=True)
        try:
            member = Member(place, started.name, self.timeout)
            while started.process.returncode is None:
                place = member.place
                self.places.setdefault(started.name, []).append((place.rank, place.world_size, place.attempt))
                self.epoch(started, member, self.lives[started.name])
        except CommError as error:
            self.said[started.name] = str(error)
            self.end(started.process, 1)

    def epoch(self, started, member, lives):
        place, process = member.place, started.process
        what = lives[min(place.attempt, len(lives) - 1)]
        if isinstance(what, dict):
            what = what.get(place.world_size, "ask")
        if isinstance(what, int):
            return self.end(process, what)
        beat = Heartbeat(
            epoch_store(place.launch, place.attempt, member._store), place.rank, place.world_size, 0.6, lambda *_: None
        )
        try:
            self.asking(started, member, beat, what)
        finally:
            beat.close()

    def asking(self, started, member, beat, what):
        process = started.process
        beat.enter("train")
        if what == "hang":
            return process.wait()
        beat.renew()
        until(lambda: _asked(beat) or process.returncode is not None, 20)
        if what == "ask then die":
            beat.put(f"regroup/0/{member.place.rank}", "0|", None)
            return self.end(process, -9)
        if process.returncode is None:
            member.regroup()


def _asked(beat):
    try:
        return beat.check_members("train")
    except LostRank:
        return True


def test_the_run_goes_on_with_those_that_are_left(monkeypatch, caplog):
    run = Run(monkeypatch, {"0.0": ["ask", 0], "1.0": [-9], "2.0": ["ask", 0]})
    assert run.failed == {}
    assert run.places == {"0.0": [(0, 3, 0), (0, 2, 1)], "1.0": [(1, 3, 0)], "2.0": [(2, 3, 0), (1, 2, 1)]}
    assert "rank 1 was ended by SIGKILL; the run goes on with rank(s) 0, 2" in caplog.messages


def test_ranks_are_lost_one_after_the_other_and_rank_0_among_them(monkeypatch):
    run = Run(monkeypatch, {"0.0": ["ask", -11], "1.0": [1], "2.0": ["ask", "ask", 0]})
    assert run.failed == {}
    assert run.places["2.0"] == [(2, 3, 0), (1, 2, 1), (0, 1, 2)]


def test_a_rank_that_hangs_is_ended(monkeypatch, caplog):
    began = time.monotonic()
    run = Run(monkeypatch, {"0.0": ["ask", 0], "1.0": ["hang"], "2.0": ["ask", 0]})
    assert run.failed == {}
    assert run.places["2.0"][-1] == (1, 2, 1)
    assert time.monotonic() - began > run.timeout
    assert any(line.startswith("rank 1 made no progress for 1 s (run.timeout)") for line in caplog.messages)


def test_a_rank_that_asked_and_died_is_not_left(monkeypatch):
    run = Run(monkeypatch, {"0.0": [{1: 0}], "1.0": [-9], "2.0": ["ask then die"]})
    assert run.failed == {}
    assert run.places["0.0"][-1][:2] == (0, 1)


def test_too_few_are_told_so(monkeypatch):
    run = Run(monkeypatch, {"0.0": ["ask"], "1.0": [-9], "2.0": ["ask"]}, least=3)
    assert list(run.failed.items()) == [(1, -9)]
    assert run.said == dict.fromkeys(("0.0", "2.0"), "regroup: too few ranks are left to go on (--min-ranks)")


def test_a_lost_rank_that_is_started_again_joins_behind_the_others(monkeypatch):
    run = Run(monkeypatch, {"0.0": [-9], "1.0": ["ask", {3: 0}], "2.0": ["ask", {3: 0}], "0.1": [0]}, restarts=1)
    assert run.failed == {}
    assert [run.places[name][-1][:2] for name in ("1.0", "2.0", "0.1")] == [(0, 3), (1, 3), (2, 3)]


def test_with_too_few_ranks_the_others_wait_for_one_that_joins(monkeypatch):
    lives = {"0.0": [-9], "1.0": ["ask", 0], "2.0": ["ask", 0], "0.1": [0]}
    run = Run(monkeypatch, lives, restarts=1, least=3)
    assert (run.places["1.0"], run.places["0.1"]) == ([(1, 3, 0), (0, 3, 1)], [(2, 3, 1)])


def test_one_that_hangs_before_it_joins_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("fedddp.comm.coordinator.START", 0.8)
    lives = {"0.0": [-9], "1.0": ["ask"], "2.0": ["ask"], "0.1": "mute"}
    run = Run(monkeypatch, lives, restarts=1, least=3)
    assert list(run.failed.items()) == [(0, -9)]
    assert run.said.keys() == {"1.0", "2.0"}


def test_if_all_are_lost_those_started_again_go_on(monkeypatch):
    run = Run(monkeypatch, {"0.0": [-9], "0.1": [0]}, ranks=1, restarts=1)
    assert run.failed == {}
    assert run.places["0.1"] == [(0, 1, 1)]


def test_a_mistake_of_the_user_ends_all(monkeypatch):
    run = Run(monkeypatch, {"0.0": [2], "1.0": ["ask"], "2.0": ["ask"]}, restarts=3)
    assert run.failed[0] == 2
    assert len(run.threads) == 3


def test_a_finished_run_starts_nothing_again(monkeypatch):
    """Rank 1 is lost as the others have left: what it was to do is done."""
    run = Run(monkeypatch, {"0.0": [0], "1.0": [-9], "2.0": [0]})
    assert run.failed == {}
