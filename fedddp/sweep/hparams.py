"""TensorBoard's HParams page over a sweep's folder: one table of all its runs.

Each run's events hold its configuration and its results. Which of the fifty keys are columns is said once, at the
sweep's folder itself: those in which the runs differ. (TensorBoard takes the first such list that it finds; hence runs
write none of their own.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from ..config import flatten, to_dict
from ..telemetry.tensorboard import COMPARED, PLAIN
from .grid import Sweep


def write(sweep: Sweep) -> None:
    """The list of columns, in place of an earlier one."""
    for stale in sweep.folder.glob("events.out.tfevents.*"):
        stale.unlink()
    infos = [api_pb2.HParamInfo(name=key, type=_type(values)) for key, values in varied(sweep).items()]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"summary/{key}")) for key in COMPARED]
    experiment = api_pb2.Experiment(name=sweep.settings.name, hparam_infos=infos, metric_infos=metrics)
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    value = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=SummaryMetadata(plugin_data=plugin))
    with SummaryWriter(str(sweep.folder)) as writer:
        writer._get_file_writer().add_summary(Summary(value=[value]))


def varied(sweep: Sweep) -> dict[str, list[Any]]:
    """The keys in which runs differ, with each run's value of those that have one."""
    configs = [flatten(to_dict(run.config)) for run in sweep.runs]
    keys = dict.fromkeys(key for config in configs for key in config if key != "run.name")
    found = {key: [config.get(key) for config in configs] for key in keys}
    differing = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    plain = {key: [value for value in values if isinstance(value, PLAIN)] for key, values in differing.items()}
    return {key: values for key, values in plain.items() if values}


def _type(values: list[Any]) -> Any:
    text = any(isinstance(value, str) for value in values)
    return api_pb2.DATA_TYPE_STRING if text else api_pb2.DATA_TYPE_FLOAT64  # a truth value is stored as 0 or 1
