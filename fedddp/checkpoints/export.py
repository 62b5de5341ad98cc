"""Export the server's model for use elsewhere, under the names of its ``state_dict``.

``model.safetensors`` is the model after the last round, written when the run ends (an interrupted run has its newest
checkpoint instead). ``model-best.safetensors`` is the one with the best `Score.quality`, such as the test accuracy (of
equals the later), written at the end and, if the best round has no checkpoint of its own, beside each checkpoint. The
header of a file holds the round, the model's quality and a description of its inputs.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import first_line
from ..evaluation.server import Score
from ..flat import FlatSpec
from .durable import sync, write_tensors, writing

log = logging.getLogger("fedddp")

LAST, BEST = "model.safetensors", "model-best.safetensors"
HEADER = "fedddp"


@dataclass(frozen=True)
class RatedModel:
    """A model on disk (``path``: an exported file or a checkpoint) or, with ``w``, in memory, and its `quality`."""

    round: int
    quality: float
    path: Path
    w: Tensor | None = None


class Exports:
    """Writes the models of one run; on rank 0 only.

    Args:
        run_folder: where they are written.
        named: from a flat vector to a ``state_dict``.
        inputs: description of the model's inputs, for the files' headers.
        candidates: models of an earlier part of the run that may be the best.
    """

    def __init__(
        self,
        run_folder: Path,
        named: Callable[[Tensor], dict[str, Tensor]],
        inputs: Mapping[str, Any],
        candidates: tuple[RatedModel, ...] = (),
    ) -> None:
        self._folder, self._named, self._inputs = run_folder, named, inputs
        self._best = best_of(candidates)
        at_first = self._best.path.name if self._best else ""
        self._in_file = self._best.round if self._best and at_first == BEST else 0  # the round that is in the file
        self._in_checkpoint = self._best.round if self._best and at_first != BEST else 0

    def after_round(self, round: int, w: Tensor, score: Score | None) -> RatedModel | None:
        """The best model so far, including that of a finished round; ``w`` must not change afterwards."""
        worth = score.quality if score else -math.inf
        if worth > -math.inf and (self._best is None or worth >= self._best.quality):
            self._best = RatedModel(round, worth, self._folder / BEST, w)
        return self._best

    def beside_checkpoint(self, best: RatedModel | None, round: int) -> None:
        """Write ``best`` unless it is on disk, or in the checkpoint of ``round``."""
        if best and best.round == round:
            self._in_checkpoint = round
        if best and best.round not in (self._in_file, self._in_checkpoint):
            self._write_best(best)

    def at_end(self, best: RatedModel | None, round: int, w: Tensor, score: Score | None) -> None:
        """Write the last and the best model."""
        if best and best.round != self._in_file:
            self._write_best(best)
        self._write(LAST, round, w, score.quality if score else -math.inf)

    def _write_best(self, best: RatedModel) -> None:
        w = load_file(best.path / "server.safetensors")["w"] if best.w is None else best.w
        self._write(BEST, best.round, w, best.quality)
        self._in_file = best.round

    def _write(self, name: str, round: int, w: Tensor, worth: float) -> None:
        header = {"round": round, "quality": worth if math.isfinite(worth) else None, "inputs": self._inputs}
        with writing(
            str(self._folder / name), "the checkpoints are complete; free space, then continue with --run.resume=auto"
        ):
            # a single entry: safetensors writes several in random order, and equal models would have unequal sums
            write_tensors(self._folder / name, self._named(w), {HEADER: json.dumps(header)})
            sync(self._folder)


def best_of(candidates: tuple[RatedModel, ...]) -> RatedModel | None:
    """The best model, of equals the latest; None if none was evaluated."""
    evaluated = [c for c in candidates if c.quality > -math.inf]
    return max(evaluated, key=lambda c: (c.quality, c.round), default=None)


def exported(run_folder: Path, name: str) -> tuple[RatedModel, dict[str, Any]] | None:
    """The exported model ``name`` of a run and the description of its inputs; None if it is missing or damaged."""
    path = run_folder / name
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[HEADER])
        worth = header["quality"]
        return RatedModel(header["round"], -math.inf if worth is None else worth, path), header["inputs"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s) and is skipped", path, first_line(error))
        return None


def named(spec: FlatSpec, module: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from flat vectors to ``state_dict``s of ``module``, with tied tensors under each of their names.

    Tensors outside the flat vector, such as counters, are those of ``module``, which is not kept.
    """
    kept = {name: t for name, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    flat = {id(kept[name]): name for name in spec.names}
    source = {name: flat.get(id(t)) for name, t in kept.items()}
    outside = {name: t.detach().cpu().clone() for name, t in kept.items() if source[name] is None}

    def state_dict(w: Tensor) -> dict[str, Tensor]:
        views = spec.views(w.detach().cpu())
        return {name: outside[name] if at is None else views[at].clone() for name, at in source.items()}

    return state_dict
