"""Go on without ranks that were lost: the launcher starts the ranks, sees which ends or hangs, and says who goes on.

The launcher trains nothing. It owns the store, on the loopback interface, through which the ranks meet. The members of
a run are decided in numbered epochs, by the same rule as elsewhere (`membership`): after a loss the members of the
epoch ask to go on, and the launcher writes down who is left. In the next epoch they are ranks 0, 1, ... in their old
order, meet under a prefix of their own in the store, and connect anew. A process that was started in place of a lost
one joins behind them.
"""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch.distributed as dist

from ..errors import DONE, USAGE, in_words
from ..launched import LAUNCHER as LAUNCHERS_PID
from . import interrupt
from .heartbeat import Heartbeat
from .member import LOOK, epoch_store
from .membership import LAUNCHER, Membership, Stillness
from .world import MEMBER, START

log = logging.getLogger("fedddp")

LAST_WORDS = 5.0  # seconds that ranks get to say why they cannot go on
PATIENCE = 30.0  # seconds from a request to stop to the end of a process by force


@dataclass
class Started:
    """A process of the run.

    Attributes:
        number: the rank that it was started as.
        before: how many processes were started as that rank before.
        since: when it was started, by `time.monotonic`.
    """

    number: int
    before: int
    process: subprocess.Popen[bytes]
    since: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Names the process in the store."""
        return f"{self.number}.{self.before}"

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    @property
    def end(self) -> str:
        """How the process ended."""
        return f"rank {self.number} {in_words(self.process.returncode)}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to those that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Coordinator:
    """Starts the ranks of a run on this machine and keeps it going with those that are left.

    Args:
        command: what every rank runs.
        ranks: their number at first.
        launch: identifies this start.
        least: the fewest ranks to go on with.
        restarts: how many of the lost ranks are started again.
        timeout: seconds without progress after which a rank is ended.
    """

    def __init__(
        self, command: Sequence[str], ranks: int, launch: str, *, least: int, restarts: int, timeout: float
    ) -> None:
        self._command, self._ranks, self._least, self._timeout = command, ranks, least, timeout
        self._restarts = restarts
        listener = socket.create_server(("127.0.0.1", 0))
        self._port, self._launch, self._epoch = listener.getsockname()[1], launch, 0
        self._store = dist.TCPStore(
            "127.0.0.1", self._port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._started: list[Started] = []
        self._members: list[Started] = []
        self._joining: list[Started] = []
        self._failed: dict[int, int] = {}

    def run(self) -> dict[int, int]:
        """Start the ranks and return when all have ended: the exit codes of those that failed; none if the run is done.

        Raises:
            Interrupted: this process was asked to stop. The ranks were asked in turn, and given 30 s.
        """
        done = False
        with interrupt.handled():
            try:
                self._members = [self._start(number) for number in range(self._ranks)]
                while self._members:
                    done |= self._lived_through()
                self._await_end(0.0 if USAGE in self._failed.values() else LAST_WORDS)
            finally:
                self._stop()
        return {} if done else self._failed

    def _start(self, number: int, before: int = 0) -> Started:
        variables = {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": self._ranks,
            "LOCAL_WORLD_SIZE": self._ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RUN_ID": self._launch,
            LAUNCHERS_PID: os.getpid(),
            MEMBER: f"{number}.{before}",
        }
        env = {**os.environ, **{key: str(value) for key, value in variables.items()}}
        started = Started(number, before, self._spawn(env))
        self._started.append(started)
        return started

    def _spawn(self, env: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=env, start_new_session=True)

    def _lived_through(self) -> bool:
        """Watch one epoch to its end and begin the next. Returns whether a member has finished the run."""
        prefix = epoch_store(self._launch, self._epoch, self._store)
        beat = Heartbeat(prefix, LAUNCHER, len(self._members), self._timeout, lambda *_: None)
        beat.renew()
        try:
            self._watch(beat)
            beat.put(f"regroup/{beat.epoch}", "asked", None)
            membership = Membership(beat, LAUNCHER)
            asked = membership.collect(partial(self._lost, beat), lambda: None)
            done = any(member.process.returncode == DONE for member in self._members)
            lost = self._lost_ones()
            asked = {rank: entry for rank, entry in asked.items() if not self._members[rank].ended}
            joining = [] if done else self._await_enough(len(asked))
            left = [self._members[rank] for rank in sorted(asked)] + joining
            if USAGE in self._failed.values() or (len(left) < self._least and not done):
                left, joining, asked = [], [], {}
            first, self._epoch, self._members = len(self._members), self._epoch + 1, left
            self._store.set(f"numbers/{self._epoch}", " ".join(str(member.number) for member in left))
            self._welcome(joining)
            membership.publish(asked | {first + i: "0|" for i in range(len(joining))})
            if left and lost:
                ranks = ", ".join(str(member.number) for member in left)
                log.warning("%s; the run goes on with rank(s) %s", "; ".join(member.end for member in lost), ranks)
        finally:
            beat.close()
        return done

    def _watch(self, beat: Heartbeat) -> None:
        """Return when a member has failed or asks, when one waits to join, or when all have ended."""
        stillness = {rank: Stillness() for rank in beat.members}
        look = 0.0
        while not self._due(beat):
            interrupt.check()
            if time.monotonic() > look:
                for rank, still in stillness.items():
                    self._lost(beat, rank, still.lasted(beat.read(rank)))
                look = time.monotonic() + beat.interval / 2
            time.sleep(LOOK)

    def _due(self, beat: Heartbeat) -> bool:
        codes = [member.process.poll() for member in self._members]
        failed = any(code not in (None, DONE) for code in codes)
        asked = beat.store.check([f"regroup/{beat.epoch}"])
        return failed or asked or None not in codes or bool(self._announced())

    def _lost(self, beat: Heartbeat, rank: int, still: float) -> bool:
        """Whether a member has ended; one that made no progress for the timeout is ended here."""
        member = self._members[rank]
        works = beat.read(rank)[0] >= 0 and not beat.store.check([f"left/{rank}"])  # neither begins nor ends
        if still > (self._timeout if works else max(self._timeout, START)) and not member.ended:
            log.warning("rank %d made no progress for %.0f s (run.timeout) and is ended", member.number, still)
            member.signal(signal.SIGKILL)
            member.process.wait()
        return member.ended

    def _lost_ones(self) -> list[Started]:
        """The processes that have failed. Others are started in their place as long as that is allowed."""
        lost = [m for m in (*self._members, *self._joining) if m.ended and m.process.returncode != DONE]
        self._joining = [member for member in self._joining if member not in lost]
        for member in lost:
            self._failed.setdefault(member.number, member.process.returncode)
            if self._restarts and member.process.returncode != USAGE:
                self._restarts -= 1
                self._joining.append(self._start(member.number, member.before + 1))
        return lost

    def _announced(self) -> list[Started]:
        """The processes that wait to join."""
        return [m for m in self._joining if not m.ended and self._store.check([f"joining/{m.name}"])]

    def _await_enough(self, left: int) -> list[Started]:
        """Wait until enough ranks can go on, with the ``left`` ones, or no others are to come. Those that join."""
        while left + len(joining := self._announced()) < self._least:
            interrupt.check()
            for member in self._joining:
                if member not in joining and time.monotonic() - member.since > max(self._timeout, START):
                    member.signal(signal.SIGKILL)  # it hangs before it can join
            if all(member.ended for member in self._joining):
                break
            time.sleep(LOOK)
        return joining

    def _welcome(self, joining: Sequence[Started]) -> None:
        """Tell processes in which epoch they join."""
        for member in joining:
            self._store.set(f"joined/{member.name}", str(self._epoch))
            self._joining.remove(member)
            log.warning("rank %d was started again and joins", member.number)

    def _stop(self) -> None:
        """End all processes: ask them, and force those that do not end."""
        living = [member for member in self._started if not member.ended]
        for member in living:
            member.signal(signal.SIGTERM)
        self._await_end(PATIENCE)
        for member in living:
            if not member.ended:
                member.signal(signal.SIGKILL)
                member.process.wait()

    def _await_end(self, seconds: float) -> None:
        """Wait so long for the end of the processes."""
        deadline = time.monotonic() + seconds
        for member in self._started:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
