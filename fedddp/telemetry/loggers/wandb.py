"""Weights & Biases: ``telemetry.loggers=["wandb"]``, extra ``wandb``."""

from __future__ import annotations

import os
import secrets
from typing import Any

from ...registry.optional import imported
from ..telemetry import Metrics, RoundRecord
from .base import Run, flat


class WandB:
    """A run of Weights & Biases in the project WANDB_PROJECT (fedddp), in the run folder.

    Nothing leaves the machine unless WANDB_MODE=online says so; ``wandb sync`` uploads RUN/wandb/offline-run-* later.
    """

    def __init__(self, run: Run) -> None:
        wandb = imported("wandb", "wandb", "telemetry.loggers='wandb'")
        identifier, _ = run.identifier("wandb", lambda: secrets.token_hex(4))
        quiet = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedddp"),
            name=run.name,
            id=identifier,
            resume="allow",
            dir=str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(run.config),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="round")

    def round(self, record: RoundRecord) -> None:
        """Log a round; the step of a chart is the key round, since a resumed run may repeat some."""
        self._run.log(flat(record.metrics))

    def close(self, summary: Metrics | None) -> None:
        """Add the summary and finish the run."""
        self._run.summary.update(flat(summary or {}))
        self._run.finish(exit_code=0 if summary is not None else 1)
