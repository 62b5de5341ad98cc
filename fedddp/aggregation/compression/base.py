"""What every compression is, which part of an upload it may squeeze, and what it is given to build on.

A compression stands where the plain sum stands: rows go in, the weighted sum over all ranks' clients comes out. That
one object encodes, sends and decodes, since what a client may send can depend on the others (a common scale, a common
subspace). Each client's row is compressed as its paper says, whatever rank hosts it, so that the result does not depend
on the number of ranks; what passes between ranks are the compressed numbers.

Letters: C columns of a row that are compressed, m clients of a round, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ...flat import FlatSpec
from ...types import ClientState, Delivery
from ..reduce import Reduce


class Memory(Protocol):
    """What clients remember of what was not sent, on CPU, and what all ranks remember alike (``shared``)."""

    @property
    def shared(self) -> Mapping[str, Tensor]: ...

    def get(self, ids: Sequence[int]) -> ClientState: ...

    def put(self, ids: Sequence[int], state: ClientState, rows: Sequence[int]) -> None: ...

    def share(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Setting:
    """What there is to build on. ``new_sum(dtype)``: an uncompressed sum for what is not compressed, exact (and then
    float64) or of ``dtype``, as `aggregation.sum` says. ``ranks``: R."""

    layout: Mapping[str, int]
    spec: FlatSpec
    seed: int
    ranks: int
    memory: Memory
    new_sum: Callable[[torch.dtype], Reduce]


class Compression(Protocol):
    """Hyper-parameters of one method: a dataclass that is its own configuration section."""

    @property
    def delivery(self) -> Delivery:
        """What becomes of what it leaves out: an algorithm may rest on it."""
        ...

    def columns(self, layout: Mapping[str, int], spec: FlatSpec) -> Columns:
        """What of an upload is compressed."""
        ...

    def init_client(self, columns: Columns) -> ClientState:
        """What a client that never took part remembers, name -> [1, d]; empty for a method without memory."""
        ...

    def sum(self, setting: Setting) -> Reduce:
        """The sum that sends less."""
        ...


@dataclass(frozen=True)
class NoCompression:
    """Every number as it is: one all_reduce, 8 (R-1)/R D bytes from each rank in float32."""

    @property
    def delivery(self) -> Delivery:
        return "whole"

    def columns(self, layout: Mapping[str, int], spec: FlatSpec) -> Columns:
        return Columns(sum(layout.values()), ())

    def init_client(self, columns: Columns) -> ClientState:
        return {}

    def sum(self, setting: Setting) -> Reduce:
        return setting.new_sum(setting.spec.dtype)


@dataclass(frozen=True)
class Columns:
    """The columns of a packed row [L] that are compressed: ``tensors``, (start, shape) of each, ascending.

    Compressed are the trainable tensors of every vector that is as long as the model or its trainable part. The rest
    travels as it is: BatchNorm's statistics, which noise could make negative, and vectors that are no model (a
    normaliser of length 1).
    """

    length: int
    tensors: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(
        cls,
        layout: Mapping[str, int],
        spec: FlatSpec,
        chosen: Callable[[tuple[int, ...]], bool] = lambda shape: True,
    ) -> Columns:
        """Of uploads with ``layout``, the tensors of whose shapes ``chosen`` holds."""
        tensors, start = [], 0
        for length in layout.values():
            offset = start if length in (spec.dim, spec.num_trainable) else None
            for shape in spec.shapes if offset is not None else ():
                assert offset is not None
                if offset + prod(shape) > start + spec.num_trainable:
                    break  # frozen parameters and buffers come after what trains
                if chosen(shape):
                    tensors.append((offset, shape))
                offset += prod(shape)
            start += length
        return cls(start, tuple(tensors))

    @property
    def squeezed(self) -> int:
        """C, how many are compressed."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def plain(self) -> int:
        """How many are not."""
        return self.length - self.squeezed

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``rows [..., L]`` to what is compressed [..., C] and what is not [..., L - C]."""
        taken, left = ([r for r, chosen in self._ranges() if chosen == wanted] for wanted in (True, False))
        return _joined(rows, taken), _joined(rows, left)

    def join(self, squeezed: Tensor, plain: Tensor) -> Tensor:
        """The inverse of `split`, of vectors."""
        parts, at = [], {True: 0, False: 0}
        for (start, stop), taken in self._ranges():
            source = squeezed if taken else plain
            parts.append(source[at[taken] : at[taken] + stop - start].to(squeezed.dtype))
            at[taken] += stop - start
        return torch.cat(parts)

    def _ranges(self) -> list[tuple[tuple[int, int], bool]]:
        """[start, stop) and whether it is compressed, covering all L columns in order."""
        marks: list[tuple[tuple[int, int], bool]] = []
        for start, shape in (*self.tensors, (self.length, (0,))):
            reached = marks[-1][0][1] if marks else 0
            for a, b, taken in ((reached, start, False), (start, start + prod(shape), True)):
                if a == b:
                    continue
                if marks and marks[-1][1] == taken:
                    a = marks.pop()[0][0]
                marks.append(((a, b), taken))
        return marks


def _joined(rows: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    parts = [rows[..., start:stop] for start, stop in ranges]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim=-1) if parts else rows[..., :0]
