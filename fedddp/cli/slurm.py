"""Write and submit batch scripts for SLURM, in which each task of srun is a rank (``--slurm``)."""

import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.run_folder import label_of
from ..errors import DONE, INTERRUPTED, UsageError

GRACE = 60
"""Seconds before a time limit at which ranks are asked to stop; they need 5, or 24 where one reaches no safe point."""
SCRIPT = """\
#!/usr/bin/env bash
{directives}
# Each task of srun is a rank. {grace} s before a time limit (SLURM may be a minute early) all get SIGUSR1, write the
# last finished round and end with exit code {interrupted}: the job queues again and resumes its run. scancel ends it
# for good. Ranks notice by themselves that one is lost, and write: srun does not end them, as clusters may have it.
export TORCHELASTIC_RUN_ID=slurm-$SLURM_JOB_ID TORCHELASTIC_RESTART_COUNT=${{SLURM_RESTART_COUNT:-0}}
{plans}srun --kill-on-bad-exit=0 --wait=0 {command}
code=$?
if ((code == {interrupted})); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class Batch:
    """A job, or an array of jobs, of one program.

    Attributes:
        name: names the job and the file with its output.
        ranks, machines: ranks on each machine, and the number of machines.
        words: the command line of ``fedddp train``.
        device: their run.device.
        plans: the files of an array's runs, one a job; none for a single job.
        jobs: how many of these run at the same time at most; 1: as many as SLURM lets.
    """

    name: str
    ranks: int
    machines: int
    words: Sequence[str]
    device: str
    plans: Sequence[Path] = ()
    jobs: int = 1

    def output(self, job: str, task: str = "") -> str:
        """Return the name of the file with the output of a job, or of a task of an array."""
        return f"{label_of(self.name)}-{job}{task and '_'}{task}.out"

    def script(self, options: Sequence[str] = ()) -> str:
        """Return the batch script; ``options`` of sbatch come after its own, and replace them."""
        output = self.output("%A", "%a") if self.plans else self.output("%j")
        lines = [f"--job-name={label_of(self.name)}", f"--output={output}", "--open-mode=append", "--requeue"]
        lines += [f"--signal=USR1@{GRACE}", f"--nodes={self.machines}", f"--ntasks-per-node={self.ranks}"]
        if self.device == "cuda":  # of the node: a rank finds its own by its number there
            lines.append(f"--gpus-per-node={self.ranks}")
        if self.plans:
            lines.append(f"--array=0-{len(self.plans) - 1}" + (f"%{self.jobs}" if self.jobs > 1 else ""))
        named = "".join(f"    {shlex.quote(str(plan))}\n" for plan in self.plans)
        command = shlex.join([sys.executable, "-m", "fedddp", "train", *self.words])
        return SCRIPT.format(
            directives="\n".join(f"#SBATCH {line}" for line in (*lines, *options)),
            grace=GRACE,
            interrupted=INTERRUPTED,
            plans=f"plans=(\n{named})\n" if self.plans else "",
            command=f'{command} "${{plans[SLURM_ARRAY_TASK_ID]}}"' if self.plans else command,
        )


def start(batch: Batch, args: Namespace) -> int:
    """Submit a batch, or print its script. Raises UsageError where SLURM, or one of its options, is not as needed."""
    for option in args.sbatch:
        if not option.startswith("-") or not option.isprintable():
            raise UsageError(f"--sbatch={option!r}: should be one option, such as --sbatch=--time=04:00:00")
    script = batch.script(args.sbatch)
    if args.print:
        print(script, end="")
        return DONE
    try:
        sent = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True)
    except OSError:
        raise UsageError("--slurm: there is no sbatch here; submit what --print prints where there is") from None
    if sent.returncode:
        why = (sent.stderr.strip().splitlines() or [f"exit code {sent.returncode}"])[-1]
        why = why.removeprefix("sbatch: ").removeprefix("error: ")
        raise UsageError(f"--slurm: {why}; --sbatch=OPTION sets an option of sbatch, --print shows the script")
    job = sent.stdout.strip().partition(";")[0]
    if batch.plans:
        print(f"job {job}: {len(batch.plans)} runs; output in {batch.output(job, 'N')}, end all with: scancel {job}")
        print("the same command without --slurm writes the tables once they are done")
    else:
        what = f"{batch.machines} x {batch.ranks} ranks"
        print(f"job {job}: {what}; output in {batch.output(job)}, end it with: scancel {job}")
    return DONE


def check_options(args: Namespace) -> None:
    """Raise UsageError for options that mean nothing without --slurm, or with it."""
    if args.slurm and args.dry_run:
        raise UsageError("--dry-run: not with --slurm, whose script --print shows; leave one of them out")
    for option, given in (("--sbatch", args.sbatch), ("--print", args.print)):
        if given and not args.slurm:
            raise UsageError(f"{option}: goes with --slurm; add it, or leave {option} out")
