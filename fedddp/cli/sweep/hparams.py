"""TensorBoard's HParams page over a sweep's folder: one table of all its runs.

Each run's events hold its configuration and its results. Which of the fifty keys are columns is said once, at the
sweep's folder itself: those in which the runs differ. (TensorBoard takes the first such list that it finds; hence runs
write none of their own.)
"""

from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ...config import flatten, to_dict
from ...telemetry.tensorboard import COMPARED, PLAIN
from .grid import Sweep


def write(sweep: Sweep) -> None:
    """The list of columns, in place of an earlier one."""
    for stale in sweep.folder.glob("events.out.tfevents.*"):
        stale.unlink()
    columns, _, _ = hparams(varied(sweep), {f"summary/{key}": 0.0 for key in COMPARED})
    with SummaryWriter(str(sweep.folder)) as writer:
        writer._get_file_writer().add_summary(columns)


def varied(sweep: Sweep) -> dict[str, Any]:
    """The keys in which runs differ, with a value of each: text if any run's is, since that says the column's kind."""
    configs = [flatten(to_dict(run.config)) for run in sweep.runs]
    keys = dict.fromkeys(key for config in configs for key in config if key != "run.name")
    found = {key: [config.get(key) for config in configs] for key in keys}
    differing = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    plain = {key: [value for value in values if isinstance(value, PLAIN)] for key, values in differing.items()}
    return {key: max(values, key=lambda value: isinstance(value, str)) for key, values in plain.items() if values}
