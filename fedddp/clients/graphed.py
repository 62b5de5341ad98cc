"""The step of a folded model as a CUDA graph: recorded once a block shape, then started as a whole."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from ..errors import reason
from ..tasks import Task
from .folded import FoldedModel

log = logging.getLogger("fedddp")

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WARM_UP = 3
"""Full steps of a shape taken as usual first: libraries set themselves up in them, which cannot be recorded."""
MOST_GRAPHS = 8
"""Each holds the memory of a step. A rank sees few shapes: a full block, what is left over, a client alone."""


class GraphedModel:
    """A `FoldedModel` whose steps are replayed where all clients of a block are at work.

    A small step is dozens of kernels that run for microseconds each; starting them one by one takes longer. A graph
    starts them all, but with the addresses of its recording. So the weights of every block lie in one buffer, inputs
    are copied into buffers of their own, and linear layers take their dense form, whose operands do not grow from
    step to step. What a step returns is overwritten by the next one.
    """

    def __init__(self, model: FoldedModel) -> None:
        self.spec, self.replayed = model.spec, 0
        self.refused: str | None = None
        self._model, self._lr = model, 0.0
        self._weights: Tensor | None = None  # [most clients of a block so far, D]
        self._warmed_up: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Recording] = {}

    def collect(self, w: Tensor, g: Tensor) -> None:
        """See `Oracle.collect`. Steps are not replayed then: w and g are others in every block."""
        self._clients = 0
        self._model.collect(w, g)

    def begin(self, start: Tensor, rows: Tensor, lr: float, seen: int) -> None:
        """See `Descending.begin`."""
        if lr != self._lr:
            self._recorded.clear()  # they step at another rate
        if self._weights is None or len(self._weights) < len(rows):
            self._recorded.clear()  # they work on the buffer that goes
            self._weights = torch.empty_like(rows)
        self._rows, self._clients, self._lr = rows, len(rows), lr
        self._model.begin(start, self._weights[: len(rows)], lr, sys.maxsize)  # seen: too many for factors

    def finish(self) -> None:
        """See `Descending.finish`."""
        assert self._weights is not None
        self._model.finish()
        self._rows.copy_(self._weights[: self._clients])
        del self._rows

    def step(self, task: Task, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """See `Oracle.step`."""
        step: Step = partial(self._model.step, task)
        shape = (self._lr, x.shape, y.shape) if len(x) == self._clients else None
        if shape not in self._recorded:
            if shape is None or self.refused or len(self._recorded) == MOST_GRAPHS:
                return step(x, y, share)
            self._warmed_up[shape] += 1
            if self._warmed_up[shape] <= WARM_UP:
                return aside(step, x, y, share)
            try:
                self._recorded[shape] = Recording(step, (x, y, share))
            except Exception as error:  # nothing has happened to the weights: recording does not execute
                self.refused = reason(error)
                log.warning("local steps are not replayed, since one could not be recorded: %s", self.refused)
                return step(x, y, share)
        self.replayed += 1
        return self._recorded[shape].replay(x, y, share)


def aside(step: Step, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """A step on the stream that recordings are made on, between what comes before and after it here."""
    stream, here = _side_stream(x.device), torch.cuda.current_stream(x.device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        result = step(x, y, share)
    here.wait_stream(stream)
    return result


class Recording:
    """A step on inputs of one shape, recorded and not yet executed. Raises what the step raises."""

    def __init__(self, step: Step, inputs: Sequence[Tensor]) -> None:
        self._inputs, self._graph = [t.clone() for t in inputs], torch.cuda.CUDAGraph()
        device = inputs[0].device
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),  # come back to, whatever happens
            torch.cuda.graph(self._graph, stream=_side_stream(device), capture_error_mode="thread_local"),
        ):  # thread_local: what other threads do with the device meanwhile is no part of it
            self._outputs = step(*self._inputs)

    def replay(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The step on other inputs."""
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        self._graph.replay()
        return self._outputs


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
