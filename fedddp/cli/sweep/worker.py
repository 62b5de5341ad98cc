"""Processes for runs: each is on its own, but what Python imports is imported once for all that are one process."""

import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Protocol

IMPORTED = ["fedddp.train", "fedddp.telemetry.tensorboard"]
"""What takes seconds to import: a server does it once and forks for each run. It trains nothing and has no GPU."""
FORKS = multiprocessing.get_context("forkserver")


class Started(Protocol):
    """A run's process: the part of `subprocess.Popen` that `Forked` has, too."""

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int | None: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Worker:
    """Starts runs one after the other, on its part of the cores and GPUs if there are several workers.

    Attributes:
        number, of: which worker this is, and how many there are.
        nproc: ranks per run.
        lock: the descriptor of the sweep's lock, which runs hold as well; None without one.
    """

    number: int = 0
    of: int = 1
    nproc: int = 1
    lock: int | None = None

    def start(self, plan: Path, log: Path) -> Started:
        """Start the run of the file ``plan`` in a session of its own; what it says is added to ``log``."""
        cores, environment = self._cores(), self._environment()
        if self.nproc == 1:
            return Forked(plan, log, cores, environment, self.lock)
        os.sched_setaffinity(0, cores)  # of this thread, and so of the processes that it starts
        words = [sys.executable, "-m", "fedddp", "launch", f"--ranks={self.nproc}", str(plan)]
        with log.open("a", encoding="utf-8") as out:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=False,
                env={**os.environ, **environment},
            )

    def _cores(self) -> set[int]:
        """This worker's cores; with more workers than cores, one that it shares."""
        cores = sorted(os.sched_getaffinity(os.getpid()))
        return set(cores[self.number :: self.of] or [cores[self.number % len(cores)]])

    def _environment(self) -> dict[str, str]:
        if self.of == 1:
            return {}
        import torch

        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
        own = [gpus[(self.number * self.nproc + rank) % len(gpus)] for rank in range(self.nproc)] if gpus else []
        return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))} if own else {}


class Waited:
    """A forked process, asked for its end as a `subprocess.Popen` is; ``what`` it is, for who waits in vain."""

    def __init__(self, process: BaseProcess, what: str) -> None:
        self._process, self._what = process, what

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._what, timeout or 0.0)
        return self._process.exitcode


class Forked(Waited):
    """A run of one process, forked from a server that has imported what it needs."""

    def __init__(self, plan: Path, log: Path, cores: set[int], environment: dict[str, str], lock: int | None) -> None:
        FORKS.set_forkserver_preload(IMPORTED)
        held = _Held(lock) if lock is not None else None
        super().__init__(FORKS.Process(target=_train, args=(plan, log, cores, environment, held)), "fedddp train")
        self._process.start()

    def send_signal(self, sig: int) -> None:
        if self._process.pid:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, sig)

    def kill(self) -> None:
        self._process.kill()


class _Held:
    """An open file that a forked process has as well."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __getstate__(self) -> Any:
        return DupFd(self._descriptor)

    def __setstate__(self, sent: Any) -> None:
        self._descriptor = sent.detach()


def _train(plan: Path, log: Path, cores: set[int], environment: dict[str, str], held: object) -> None:
    """``fedddp train PLAN`` as the forked process does it."""
    os.setsid()  # Ctrl-C at the terminal is the sweep's
    os.sched_setaffinity(0, cores)
    os.environ.update(environment)
    with log.open("ab") as out, open(os.devnull, "rb") as nothing:
        for descriptor, stream in ((0, nothing), (1, out), (2, out)):
            os.dup2(stream.fileno(), descriptor)
    from ..main import main

    sys.exit(main(["train", str(plan)]))
