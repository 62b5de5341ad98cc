"""Read a rank's place from the variables of srun, which starts one task per rank and nothing else."""

import re
from collections.abc import Mapping
from itertools import product

from ..errors import UsageError

FIRST_PORT, PORTS = 20000, 12000  # below the ports that Linux gives to outgoing connections


def srun_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables for a task of srun; nothing if this is not one of several, or a launcher set them.

    The variables of the step count: those of the job are also there in a batch script, which is one process. Ranks meet
    on the first host of the step, at a port that follows from the job's number (or MASTER_ADDR and MASTER_PORT). A
    requeued job counts as a restart.

    Raises UsageError for variables that cannot be understood.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if "WORLD_SIZE" in env or not tasks.isdecimal() or int(tasks) < 2 or "SLURM_PROCID" not in env:
        return {}
    try:
        job, step, node = (int(env[key]) for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID"))
        hosts, counts = expanded(env["SLURM_STEP_NODELIST"]), _counts(env["SLURM_STEP_TASKS_PER_NODE"])
        local = counts[node]
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"SLURM_STEP_NUM_TASKS={tasks}: srun started {tasks} tasks, but its variables say not where ({error}); "
            "start one task per machine, with fedddp launch --nnodes as its program"
        ) from None
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": env.get("MASTER_ADDR") or hosts[0],
        "MASTER_PORT": env.get("MASTER_PORT") or str(FIRST_PORT + (job + 997 * step) % PORTS),
        "TORCHELASTIC_RUN_ID": env.get("TORCHELASTIC_RUN_ID") or f"slurm-{job}.{step}",
        "TORCHELASTIC_RESTART_COUNT": env.get("SLURM_RESTART_COUNT", "0"),
    }


def expanded(hosts: str) -> list[str]:
    """Return the hosts of a list such as ``gpu[01-03,7],login``. Raises ValueError for another text."""
    found = []
    for item in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", hosts):
        parts = re.split(r"\[([^\[\]]*)\]", item)  # names at even places, ranges between them
        choices = [
            [part] if i % 2 == 0 else [n for r in part.split(",") for n in _range(r)] for i, part in enumerate(parts)
        ]
        found += ["".join(choice) for choice in product(*choices)]
    if not found:
        raise ValueError(f"no hosts in {hosts!r}")
    return found


def _range(text: str) -> list[str]:
    first, _, last = text.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def _counts(text: str) -> list[int]:
    """``2(x3),1`` is 2, 2, 2, 1."""
    counts = []
    for item in text.split(","):
        count, _, times = item.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts
