"""Write a run to TensorBoard: scalars, histograms, figures and hyper-parameters."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ..data import Excerpt
from ..evaluation.server import Score
from . import figures
from .beside import SideWork
from .telemetry import Metrics, RoundRecord, now_and_then

log = logging.getLogger("fedddp")

WIDEST = 9e19
"""Largest value in torch's histograms, which raise an error if all values are larger."""

PLAIN = str | int | float | bool
"""Types of configuration values that the HParams page can hold."""


class TensorBoard:
    """Scalars and histograms each round, figures in rounds 1, 2, 5, 10, 20, 50, ... and at the end.

    Figures are not drawn each round, since that takes tenths of a second and a round may take less. After a resume,
    later rounds of an earlier attempt are hidden. A piece that cannot be drawn or written is left out by ``side``.
    Unless ``timed``, every event has the time at which the file was begun. ``measured``: what a report's
    ``train_accuracy`` is.
    """

    def __init__(
        self,
        folder: Path,
        done: int,
        config: str,
        keys: Mapping[str, Any],
        owners: Excerpt,
        side: SideWork,
        *,
        measured: str = "accuracy",
        timed: bool = True,
    ) -> None:
        self._side, self._measured = side, measured
        self._writer = SummaryWriter(str(folder), purge_step=done + 1)
        _not_printed(self._writer)
        if not timed:
            _undated(self._writer)
        self._hparams = {k: v for k, v in keys.items() if isinstance(v, PLAIN)}
        self._last: tuple[int, Score] | None = None
        self._drawn = 0
        self._drawable = True
        self._terms = ""
        self._writer.add_text("config", "```toml\n" + config + "```", done)
        with side("TensorBoard's picture of the partition"):
            self._writer.add_figure("partition", figures.partition(owners), done)
        self._writer.flush()

    def round(self, record: RoundRecord) -> None:
        m, score, side = record.metrics, record.score, self._side
        t = m["round"]
        with side("TensorBoard's scalars"):
            self._scalars(record, t)
        with side("TensorBoard's histograms"):
            for name, values in record.report.per_client.items():
                self._histogram(f"clients/{name}", values, t)
            if record.clients is not None:
                self._histogram(f"personal/personal_{self._measured}", record.clients.personal.accuracy, t)
                self._histogram(f"personal/global_on_clients_{self._measured}", record.clients.global_model.accuracy, t)
        if score is not None:
            for name, images in score.pictures.items():
                with side(f"TensorBoard's picture {name!r}"):
                    self._writer.add_image(name, figures.grid(images), t, dataformats="HWC")
            for name, text in score.texts.items():
                self._writer.add_text(name, f"```\n{text}\n```", t)
            self._last = (t, score)
            if now_and_then(t):
                self._draw(t, score)
        self._writer.flush()

    def _scalars(self, record: RoundRecord, t: int) -> None:
        m, score = record.metrics, record.score
        scalars = {
            "accuracy/test": m["test_accuracy"],
            "loss/test": m["test_loss"],
            f"{self._measured}/train": record.report.train_accuracy,
            **{f"{name}/test": v for name, v in (score.metrics if score else {}).items() if name != "accuracy"},
            "loss/train": m["train_loss"],
            "round/participants": m["participants"],
            "round/failures": m["failures"],
            "round/examples": m["examples"],
            "round/imbalance": m["imbalance"] if m["bytes_sent"] else None,  # a single rank sends nothing
            "round/bytes_sent_per_rank": m["bytes_sent"] or None,
            "privacy/epsilon": m.get("epsilon"),
            "accuracy/clients_mean": m.get("clients_mean_accuracy"),
            "loss/clients_mean": m.get("clients_mean_loss"),
            "attack/success": m.get("attack_success"),
            **{f"sent/{purpose}": sent for purpose, sent in m["sent"].items()},
            "seconds/round": m["seconds"],
            "seconds/train": m["seconds_train"],
            "seconds/aggregate": m["seconds_aggregate"],
            "seconds/evaluate": m["seconds_evaluate"],
            **{f"personal/{k}": v for k, v in (record.clients.metrics() if record.clients else {}).items()},
            **{f"class accuracy/{k}": v for k, v in enumerate(score.per_class.tolist() if score else [])},
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, t)
        if (terms := m.get("epsilon_terms")) and terms != self._terms:
            self._writer.add_text("privacy/terms", f"epsilon is {terms}", t)
            self._terms = terms

    def _histogram(self, name: str, values: Tensor, t: int) -> None:
        finite = values[values.isfinite()]
        if len(finite):
            self._writer.add_histogram(name, finite.clamp(-WIDEST, WIDEST), t)

    def _draw(self, t: int, score: Score) -> None:
        """Draw the figures of a classifier; very many classes have no confusion matrix."""
        if len(score.confusion):
            with self._side("TensorBoard's picture of the confusion matrix"):
                self._writer.add_figure("confusion", figures.confusion(score, t), t)
        self._look_at([mistake.image for mistake in score.mistakes])
        if score.mistakes and self._drawable:
            with self._side("TensorBoard's picture of the worst mistakes"):
                self._writer.add_figure("worst mistakes", figures.mistakes(score.mistakes, t), t)
        self._drawn = t

    def _look_at(self, inputs: list[Tensor]) -> None:
        """Check whether the inputs of this run are pictures; log once if they are not."""
        odd = [x for x in inputs if not figures.is_picture(x)]
        if odd and self._drawable:
            self._drawable = False
            log.info(
                "inputs of shape %s are not pictures ([1, H, W] or [3, H, W]): TensorBoard shows no worst mistakes",
                list(odd[0].shape),
            )

    def close(self, summary: Metrics | None) -> None:
        if self._last is not None and self._drawn != self._last[0]:
            self._draw(*self._last)
        if summary is not None:
            shown = next(k for k in summary if k.startswith("final_")).removeprefix("final_")
            results = {f"summary/{k}": v for k in compared(shown) if (v := summary.get(k)) is not None}
            with self._side("TensorBoard's hyper-parameters"):
                self._add_hparams(results, summary["rounds"])
        self._writer.close()

    def _add_hparams(self, results: Metrics, t: int) -> None:
        """Write hyper-parameters and results without torch's list of columns: TensorBoard would use one run's list for
        all runs beside it, and hide keys that this run does not have."""
        _, asked, ended = hparams(self._hparams, results)
        for part in (asked, ended):
            self._writer._get_file_writer().add_summary(part)
        for name, value in results.items():
            self._writer.add_scalar(name, value, t)


def compared(key: str) -> tuple[str, ...]:
    """Entries of the summary that the HParams page lists beside the configuration, where ``key`` is shown first."""
    return f"final_{key}", f"best_{key}", "rounds", "rounds_to_target", "seconds_total"


def _undated(writer: SummaryWriter) -> None:
    """Give every event from now on the present time."""
    file, now = writer._get_file_writer(), time.time()
    file.add_event = lambda event, step=None, walltime=None: type(file).add_event(file, event, step, now)


def _not_printed(writer: SummaryWriter) -> None:
    """Print no traceback of the writing thread: its error is raised, and reported, by the next call."""
    thread: Any = writer._get_file_writer().event_writer._async_writer._worker
    thread._invoke_excepthook = lambda _: None
