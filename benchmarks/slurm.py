"""What SLURM does to runs of ``fedddp launch --slurm``, and what is left of them, on a cluster of two slurmd here.

    python -m benchmarks.slurm [--only CASE ...] [--out FOLDER]

It needs root and slurm-wlm (Debian's package, built for several slurmd on a machine), and starts daemons of its own in
a temporary folder. Jobs have 2 machines with 2 ranks each and exact sums, so every run that ends must have the model of
``fedddp launch -n 4``, bit for bit. A local step sleeps: what takes long is not to need the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedddp.checkpoints.run_folder import read_lines, state_of

from . import machine
from .chaos import started_with

CONFIGURATION = """\
ClusterName=trial
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort=16817
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=20
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16821 CPUs=2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16822 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
ROUNDS, LIMIT = 24, 1500.0
"""Rounds of a run, and the seconds that a case may take."""
SMALL = [
    *(f"--run.rounds={ROUNDS}", "--run.name=r", "--run.device=cpu", "--run.threads=1"),
    *("--data.name=synthetic", "--data.args={num_train=480, num_test=60}", "--model.name=benchmarks.slurm:slow"),
    *("--aggregation.sum=exact", "--telemetry.tensorboard=off", "--checkpoint.every=1"),
]


class Slow(nn.Sequential):
    """A small model that takes its time."""

    def forward(self, input: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(input)


def slow(num_classes: int = 10) -> nn.Module:
    return Slow(nn.Flatten(), nn.LazyLinear(num_classes))


LONG = ["--client.local_epochs=8"]


@dataclass
class Outcome:
    """What became of a case: SLURM's last state, how often the job was queued again, and what the run folder says."""

    case: str
    seconds: float
    states: str
    restarts: int
    rounds_once: bool
    same_model: bool
    said: str


class Cluster:
    """Two slurmd and a slurmctld in a folder, and runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        folder.mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder))
        (folder / "hosts").write_text("127.0.0.1 localhost n1 n2\n" + Path("/etc/hosts").read_text())
        self._daemons: dict[str, subprocess.Popen] = {}
        for name in ("state", "n1", "n2"):
            (folder / name).mkdir()

    def start(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in ("n1", "n2"):
            self._daemon(node, "slurmd", "-D", "-N", node)
        self.until(lambda: self.told("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", 60)
        if ended := [name for name, daemon in self._daemons.items() if daemon.poll() is not None]:
            raise SystemExit(f"{', '.join(ended)} ended, and others listen at the ports: is a cluster left?")

    def _daemon(self, name: str, *words: str) -> None:
        """Start a daemon that finds the addresses of n1 and n2 (those of its jobs, too), in a mount namespace."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(self.folder / "hosts"), *words]
        with (self.folder / f"{name}.out").open("w") as out:
            self._daemons[name] = subprocess.Popen(command, env=self.env, stdout=out, stderr=out)

    def stop(self) -> None:
        self.told("scancel", "--user=root")
        time.sleep(3)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            daemon.wait()

    def told(self, *words: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(words, env=self.env, capture_output=True, text=True, cwd=self.folder).stdout.strip()

    def submitted(self, *words: str, time: str = "00:20:00") -> str:
        """Submit a run of 2 x 2 ranks; the number of its job."""
        command = [sys.executable, "-m", "fedddp", "launch", "-n", "2", "--nnodes=2", "--slurm"]
        return self.told(*command, f"--sbatch=--time={time}", *SMALL, *words).split()[1].rstrip(":")

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        said = self.told("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def until(self, true: Callable[[], bool], seconds: float = LIMIT) -> None:
        """Wait until something is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s; {self.told('squeue')}")
            time.sleep(0.2)

    def ended(self, job: str) -> str:
        """Wait for the end of a job and of what is left of it; its last state."""
        over = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.job(job).get("JobState") in over)
        return self.job(job)["JobState"]

    def rounds(self) -> list[int]:
        """The rounds in metrics.jsonl of the newest folder of the run."""
        folders = sorted((self.folder / "runs").glob("r*"))
        return [int(line.get("round", -1)) for line in read_lines(folders[-1] / "metrics.jsonl")] if folders else []

    def reaches(self, round: int) -> None:
        """Wait until a round is finished."""
        self.until(lambda: len(self.rounds()) >= round)


def undisturbed(cluster: Cluster) -> list[str]:
    """2 x 2 ranks to their end."""
    job = cluster.submitted()
    return [cluster.ended(job), job]


def cancelled(cluster: Cluster) -> list[str]:
    """scancel after four rounds, and the same command again with run.resume=auto."""
    first = cluster.submitted()
    cluster.reaches(4)
    cluster.told("scancel", first)
    state = cluster.ended(first)
    cluster.until(lambda: state_of(cluster.folder / "runs" / "r")[0] != "running", 60)
    kept = state_of(cluster.folder / "runs" / "r")[0]
    job = cluster.submitted("--run.resume=auto")
    return [f"{state} (the run: {kept}), {cluster.ended(job)}", job]


def limited(cluster: Cluster) -> list[str]:
    """A time limit of three minutes, which the run does not keep."""
    job = cluster.submitted(*LONG, time="00:03:00")
    return [cluster.ended(job), job]


def drained(cluster: Cluster) -> list[str]:
    """A machine is drained after four rounds: the job ends there; one that is submitted then waits."""
    job = cluster.submitted()
    cluster.reaches(4)
    cluster.told("scontrol", "update", "nodename=n2", "state=drain", "reason=trial")
    states = [cluster.ended(job)]
    waits = cluster.submitted("--run.name=other")
    time.sleep(5)
    states.append(f"the next one {cluster.job(waits)['JobState']}")
    cluster.told("scancel", waits)
    cluster.told("scontrol", "update", "nodename=n2", "state=resume")
    return [", ".join(states), job]


def down(cluster: Cluster) -> list[str]:
    """A machine goes down after four rounds, and comes back 20 s later."""
    job = cluster.submitted()
    cluster.reaches(4)
    cluster.told("scontrol", "update", "nodename=n2", "state=down", "reason=trial")
    time.sleep(20)
    state = cluster.job(job)["JobState"]
    cluster.told("scontrol", "update", "nodename=n2", "state=resume")
    return [f"{state}, {cluster.ended(job)}", job]


def rank_killed(cluster: Cluster) -> list[str]:
    """kill -9 of rank 3 after four rounds, and the same command again with run.resume=auto."""
    first = cluster.submitted()
    cluster.reaches(4)
    for pid in started_with(SLURM_JOB_ID=first, SLURM_PROCID="3"):
        os.kill(pid, signal.SIGKILL)
    state, code = cluster.ended(first), cluster.job(first)["ExitCode"]
    job = cluster.submitted("--run.resume=auto")
    return [f"{state} (exit {code}), {cluster.ended(job)}", job]


CASES = {case.__name__: case for case in (undisturbed, cancelled, limited, drained, down, rank_killed)}


def tried(name: str, cluster: Cluster, shas: dict[str, str]) -> Outcome:
    """Run a case, and look at what it left."""
    shutil.rmtree(cluster.folder / "runs", ignore_errors=True)
    began = time.monotonic()
    states, job = CASES[name](cluster)
    seconds = round(time.monotonic() - began, 1)
    restarts = int(cluster.job(job).get("Restarts", 0))
    folders = sorted(path.name for path in (cluster.folder / "runs").glob("r*"))
    summary = cluster.folder / "runs" / "r" / "summary.json"
    sha = json.loads(summary.read_text())["model_sha256"] if summary.is_file() else ""
    wanted = shas.get(name, shas[""])
    said = "" if folders == ["r"] else f"run folders {folders}"
    return Outcome(name, seconds, states, restarts, cluster.rounds() == [*range(1, ROUNDS + 1)], sha == wanted, said)


def reference(folder: Path, *words: str) -> str:
    """The model of ``fedddp launch -n 4``."""
    command = [sys.executable, "-m", "fedddp", "launch", "-n", "4", *SMALL, f"--run.dir={folder}", *words]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "r" / "summary.json").read_text())["model_sha256"]


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--keep", action="store_true", help="keep the folder, with the logs")
    parser.add_argument("--out", type=Path, default=machine.RECORDS)
    args = parser.parse_args()
    described, console, outcomes = machine.describe([args.out]), Console(), []
    folder = Path(tempfile.mkdtemp(prefix="fedddp-slurm-"))
    shas = {"": reference(folder / "whole")}
    if "limited" in args.only:
        shas["limited"] = reference(folder / "long", *LONG)
    cluster = Cluster(folder / "cluster")
    try:
        cluster.start()
        for name in args.only:
            outcomes.append(tried(name, cluster, shas))
            console.print(outcomes[-1], markup=False)
    finally:
        cluster.stop()
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table(title="2 x 2 ranks under SLURM")
    for column in ("case", "s", "states", "restarts", "each round once", "same model", ""):
        table.add_column(column)
    for o in outcomes:
        table.add_row(*(str(value) for value in asdict(o).values()))
    console.print(table)
    path = machine.keep(args.out, "slurm", {"machine": described, "cases": [asdict(o) for o in outcomes]})
    console.print(f"kept in {path}")


if __name__ == "__main__":
    main()
