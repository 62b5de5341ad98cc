"""The TensorBoard pages of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ..data import Excerpt
from ..evaluation import Score
from . import figures
from .telemetry import Metrics, RoundRecord

COMPARED = ("final_test_accuracy", "best_test_accuracy", "rounds", "rounds_to_target", "seconds_total")
"""The summary's entries that the HParams page lists beside the configuration."""

PLAIN = str | int | float | bool
"""What the HParams page can hold of a configuration."""


class TensorBoard:
    """Scalars and histograms each round, figures in rounds 1, 2, 5, 10, 20, 50, ... and at the end.

    Drawing takes tenths of a second, a round may take less: hence not each round. After a resume, what an earlier
    attempt wrote of later rounds is hidden.
    """

    def __init__(self, folder: Path, done: int, config: str, keys: Mapping[str, Any], owners: Excerpt) -> None:
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=done + 1)
        self._hparams = {k: v for k, v in keys.items() if isinstance(v, PLAIN)}
        self._last: tuple[int, Score] | None = None
        self._drawn = 0
        self._terms = ""
        self._writer.add_text("config", "```toml\n" + config + "```", done)
        self._writer.add_figure("partition", figures.partition(owners), done)
        self._writer.flush()

    def round(self, record: RoundRecord) -> None:
        m, score, writer = record.metrics, record.score, self._writer
        t = m["round"]
        scalars = {
            "accuracy/test": m["test_accuracy"],
            "loss/test": m["test_loss"],
            "accuracy/train": record.report.train_accuracy,
            "loss/train": m["train_loss"],
            "round/participants": m["participants"],
            "round/failures": m["failures"],
            "round/examples": m["examples"],
            "round/imbalance": m["imbalance"],
            "round/bytes_sent_per_rank": m["bytes_sent"],
            "privacy/epsilon": m.get("epsilon"),
            "attack/success": m.get("attack_success"),
            **{f"sent/{purpose}": sent for purpose, sent in m["sent"].items()},
            "seconds/round": m["seconds"],
            "seconds/train": m["seconds_train"],
            "seconds/aggregate": m["seconds_aggregate"],
            "seconds/evaluate": m["seconds_evaluate"],
        }
        for name, value in scalars.items():
            if value is not None:
                writer.add_scalar(name, value, t)
        if (terms := m.get("epsilon_terms")) and terms != self._terms:
            writer.add_text("privacy/terms", f"epsilon is {terms}", t)
            self._terms = terms
        for name, values in record.report.per_client.items():
            writer.add_histogram(f"clients/{name}", values, t)
        if record.clients is not None:
            for name, value in record.clients.metrics().items():
                writer.add_scalar(f"personal/{name}", value, t)
            writer.add_histogram("personal/personal_accuracy", record.clients.personal.accuracy, t)
            writer.add_histogram("personal/global_on_clients_accuracy", record.clients.global_model.accuracy, t)
        if score is not None:
            for label, accuracy in enumerate(score.per_class.tolist()):
                writer.add_scalar(f"class accuracy/{label}", accuracy, t)
            for name, images in score.pictures.items():
                writer.add_image(name, figures.grid(images), t, dataformats="HWC")
            self._last = (t, score)
            if str(t).rstrip("0") in ("1", "2", "5"):
                self._draw(t, score)
        writer.flush()

    def _draw(self, t: int, score: Score) -> None:
        if len(score.confusion):
            self._writer.add_figure("confusion", figures.confusion(score, t), t)
            self._writer.add_figure("worst mistakes", figures.mistakes(score.mistakes, t), t)
        self._drawn = t

    def close(self, summary: Metrics | None) -> None:
        if self._last is not None and self._drawn != self._last[0]:
            self._draw(*self._last)
        if summary is not None:
            results = {f"summary/{k}": summary[k] for k in COMPARED if summary[k] is not None}
            self._add_hparams(results, summary["rounds"])
        self._writer.close()

    def _add_hparams(self, results: Metrics, t: int) -> None:
        """What was asked for and what came of it, without torch's list of columns: TensorBoard would take one run's
        list for that of all runs beside it, and not show the keys that this run does not have."""
        _, asked, ended = hparams(self._hparams, results)
        for part in (asked, ended):
            self._writer._get_file_writer().add_summary(part)
        for name, value in results.items():
            self._writer.add_scalar(name, value, t)
