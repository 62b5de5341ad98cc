"""Write a run to TensorBoard: scalars, histograms, figures and hyper-parameters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ..data import Excerpt
from ..evaluation.server import Score
from ..tasks.metrics import Target
from . import figures
from .beside import SideWork
from .event_files import Continuation
from .series import CLIENTS, LEARNING, PRIVACY, Naming, Series, layout, past
from .telemetry import Metrics, RoundRecord, now_and_then, primary

log = logging.getLogger("fedddp")

WIDEST = 9e19
"""Largest value in torch's histograms, which raise an error if all values are larger."""

PLAIN = str | int | float | bool
"""Types of configuration values that the HParams page can hold."""

FIRST = ("data.partition.name", "algorithm.name", "model.name")
"""Keys that the HParams page ticks where runs do not differ in them: of the others it shows the first by name."""
OUTWARD = ("run.name", "run.dir", "run.resume", "checkpoint.", "telemetry.")
"""Keys that are no hyper-parameters."""


class TensorBoard:
    """Scalars and histograms each round, figures in rounds 1, 2, 5, 10, 20, 50, ... and at the end.

    Figures are not drawn each round, since that takes tenths of a second and a round may take less. After a resume,
    later rounds of an earlier attempt are hidden, scalars that a killed process did not write are written again from
    ``history``, and pictures over rounds begin with the resume. A piece that cannot be drawn or written is left out by
    ``side``.

    Args:
        folder, done: where to write, and the rounds done before.
        config, keys: the configuration as TOML, and by dotted key.
        owners: who owns what.
        words, changed: the run in words, and the keys that differ from the defaults as TOML.
        measured: what a report's ``train_accuracy`` is.
        rate, target: the clients' learning rate in a round (1-based), and the target of the run.
        history: the metrics of the rounds done before.
        timed: otherwise every event has the time at which the file was begun.
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
        words: str = "",
        changed: str = "",
        measured: str = "accuracy",
        rate: Callable[[int], float | None] | None = None,
        target: Target | None = None,
        history: Sequence[Metrics] = (),
        timed: bool = True,
    ) -> None:
        self._side, self._measured, self._owners = side, measured, owners
        self._naming = Naming(measured, rate, target)
        before, continued = past(self._naming, history), None
        with side("TensorBoard's files of the rounds before"):
            continued = Continuation(folder, done, before)
        self._writer = SummaryWriter(str(folder), purge_step=continued.since if continued else done + 1)
        _not_printed(self._writer)
        with side("TensorBoard's files of the rounds before"):
            if continued:
                continued.begin(self._writer)
        if not timed:
            _undated(self._writer)
        self._series = Series(self._writer.add_scalar, before)
        self._arranged = 0
        self._hparams = {
            hparam(key): v for key, v in keys.items() if isinstance(v, PLAIN) and not key.startswith(OUTWARD)
        }
        self._primary = primary(history)
        self._last: tuple[int, Score] | None = None
        self._classes: dict[int, Tensor] = {}
        self._took_part: dict[int, dict[int, bool]] = {}
        self._listed = frozenset(owners.clients.tolist())
        self._round = self._drawn = done
        self._drawable = True
        self._terms = ""
        texts = {"1 in words": words, "2 what differs from the defaults": _toml(changed), "3 all keys": _toml(config)}
        for name, text in texts.items():
            self._writer.add_text(f"0 run/{name}", text, done)
        with side("TensorBoard's picture of the partition"):
            self._writer.add_figure(f"{CLIENTS}/partition", figures.partition(owners), done)
        self._writer.flush()

    def round(self, record: RoundRecord) -> None:
        m, score, side = record.metrics, record.score, self._side
        self._round = t = m["round"]
        with side("TensorBoard's scalars"):
            self._scalars(record, t)
        with side("TensorBoard's histograms"):
            self._histogram(f"{CLIENTS}/training loss", record.report.per_client.get("train_loss"), t)
            if record.clients is not None:
                for whose, spread in (("personal", record.clients.personal), ("global", record.clients.global_model)):
                    self._histogram(f"{CLIENTS}/{self._measured} {whose}", spread.accuracy, t)
        if (losses := record.report.losses) is not None:
            self._took_part[t] = {k: k in losses for k in (*losses, *record.report.failed) if k in self._listed}
        if score is not None:
            for name, images in score.pictures.items():
                with side(f"TensorBoard's picture {name!r}"):
                    self._writer.add_image(f"{LEARNING}/{name}", figures.grid(images), t, dataformats="HWC")
            for name, text in score.texts.items():
                self._writer.add_text(f"{LEARNING}/{name}", f"```\n{text}\n```", t)
            self._last = (t, score)
            if len(score.confusion):
                self._classes[t] = score.per_class
        if now_and_then(t):
            self._draw(t)
        if now_and_then(t) and t >= 10:  # short runs have these at their end
            self._draw_rounds(t)
        self._writer.flush()

    def _scalars(self, record: RoundRecord, t: int) -> None:
        m = record.metrics
        self._primary = primary([m]) if record.score else self._primary
        self._series.add(self._naming.of_record(record), t)
        for name, value in self._naming.target.items():
            self._writer.add_scalar(name, value, t)
        if len(self._series.shown) > self._arranged:
            self._arranged = len(self._series.shown)
            tags = self._series.shown | self._naming.target.keys()
            self._writer.add_custom_scalars(layout(tags, self._primary.removeprefix("test_")))
        if (terms := m.get("epsilon_terms")) and terms != self._terms:
            self._writer.add_text(f"{PRIVACY}/terms", f"epsilon is {terms}", t)
            self._terms = terms

    def _histogram(self, name: str, values: Tensor | None, t: int) -> None:
        if values is not None and len(finite := values[values.isfinite()]):
            self._writer.add_histogram(name, finite.clamp(-WIDEST, WIDEST), t)

    def _draw(self, t: int) -> None:
        """Draw the last evaluation, as known after round ``t``; very many classes have no confusion matrix."""
        if self._last is not None and self._last[0] > self._drawn:
            evaluated, score = self._last
            if len(score.confusion):
                self._figure(f"{LEARNING}/picture: ", "confusion", evaluated, figures.confusion, score, evaluated)
            self._look_at([mistake.image for mistake in score.mistakes])
            if score.mistakes and self._drawable:
                self._figure(
                    f"{LEARNING}/picture: ", "worst mistakes", evaluated, figures.mistakes, score.mistakes, evaluated
                )
        self._drawn = t

    def _draw_rounds(self, t: int) -> None:
        """Draw what extends over the rounds up to ``t``."""
        if not all(all(row.values()) and len(row) == len(self._listed) for row in self._took_part.values()):
            self._figure(f"{CLIENTS}/", "who took part", t, figures.took_part, self._owners, self._took_part)
        if len(self._classes) > 1:
            self._figure(f"{LEARNING}/picture: ", "accuracy of classes", t, figures.classes, self._classes)

    def _figure(self, place: str, name: str, t: int, draw: Callable[..., Any], *args: Any) -> None:
        with self._side(f"TensorBoard's picture {name!r}"):
            self._writer.add_figure(f"{place}{name}", draw(*args), t)

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
        self._draw(self._round)
        self._draw_rounds(self._round)
        if summary is not None:
            with self._side("TensorBoard's hyper-parameters"):
                self._series.flush([result_tag(self._primary)])  # with one evaluation a point, for the HParams page
                self._add_hparams()
        self._writer.close()

    def _add_hparams(self) -> None:
        """Write hyper-parameters without torch's list of columns: TensorBoard would use one run's list for all runs
        beside it, and hide keys that this run does not have. Results on that page are the last values of scalars."""
        _, asked, ended = hparams(self._hparams, {result_tag(self._primary): 0.0})
        for part in (asked, ended):
            self._writer._get_file_writer().add_summary(part)


def hparam(key: str) -> str:
    """The name of a key on the HParams page, which sorts by name."""
    return f"{FIRST.index(key) + 1} {key}" if key in FIRST else key


def result_tag(key: str) -> str:
    """The scalar whose last value is the result of a run that is measured by ``key``, an entry of its metrics."""
    return f"{LEARNING}/{key.removeprefix('test_')} test"


def _toml(text: str) -> str:
    return f"```toml\n{text}```" if text else ""


def _undated(writer: SummaryWriter) -> None:
    """Give every event from now on the present time."""
    file, now = writer._get_file_writer(), time.time()
    file.add_event = lambda event, step=None, walltime=None: type(file).add_event(file, event, step, now)


def _not_printed(writer: SummaryWriter) -> None:
    """Print no traceback of the writing thread: its error is raised, and reported, by the next call."""
    thread: Any = writer._get_file_writer().event_writer._async_writer._worker
    thread._invoke_excepthook = lambda _: None
