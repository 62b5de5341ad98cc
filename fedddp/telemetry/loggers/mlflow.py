"""MLflow: ``telemetry.loggers=["mlflow"]``, extra ``mlflow``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ...registry.optional import imported
from ..telemetry import Metrics, RoundRecord
from .base import FILES, Run, flat

KEY = "telemetry.loggers='mlflow'"
MOST = 100
"""Parameters, metrics or tags of one request."""


class MLflow:
    """A run of MLflow in the experiment MLFLOW_EXPERIMENT_NAME (fedddp), by default in files in ``mlruns`` beside the
    run folder; MLFLOW_TRACKING_URI names another store.

    Numbers are metrics by round, texts are tags, and the run's files are artifacts.
    """

    def __init__(self, run: Run) -> None:
        self._entities = imported("mlflow.entities", "mlflow", KEY)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else newer versions refuse a store of files
        store = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder.absolute().parent / "mlruns").as_uri()
        self._client = imported("mlflow.tracking", "mlflow", KEY).MlflowClient(store)
        self._folder, self._round = run.folder, 0
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedddp")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        create = lambda: self._client.create_run(experiment, run_name=run.name).info.run_id  # noqa: E731
        self._run, resumed = run.identifier("mlflow", create)
        if resumed:
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._send(params=[self._entities.Param(name, str(value)[:500]) for name, value in run.config.items()])

    def round(self, record: RoundRecord) -> None:
        """Log a round."""
        self._round = record.metrics["round"]
        self._log(record.metrics)

    def close(self, summary: Metrics | None) -> None:
        """Add the summary and the files, and end the run."""
        self._log(summary or {})
        for file in FILES:
            if (self._folder / file).is_file():
                self._client.log_artifact(self._run, str(self._folder / file))
        self._client.set_terminated(self._run, "FINISHED" if summary is not None else "KILLED")

    def _log(self, metrics: Metrics) -> None:
        known, now = flat(metrics), int(1000 * time.time())
        numbers = {name: float(value) for name, value in known.items() if isinstance(value, Real)}
        texts = {name: str(value)[:500] for name, value in known.items() if name not in numbers}
        self._send(
            metrics=[self._entities.Metric(name, value, now, self._round) for name, value in numbers.items()],
            tags=[self._entities.RunTag(name, value) for name, value in texts.items()],
        )

    def _send(self, **kinds: Sequence[Any]) -> None:
        for kind, entries in kinds.items():
            for first in range(0, len(entries), MOST):
                self._client.log_batch(self._run, **{kind: entries[first : first + MOST]})
