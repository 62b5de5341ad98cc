"""The interface of compressions, and the columns of an upload that are compressed.

A compression replaces the plain sum: rows go in, the weighted sum over all ranks' clients comes out. One object
encodes, sends and decodes, since what a client may send can depend on the others (a common scale, a common subspace).
Each client's row is compressed by itself, whatever rank hosts it, so that the result does not depend on the number of
ranks; ranks exchange the compressed numbers.

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
    """State between rounds, on CPU: of each client, and ``common`` to all, equal on every rank."""

    @property
    def common(self) -> Mapping[str, Tensor]: ...

    def get(self, ids: Sequence[int], new: ClientState) -> ClientState: ...

    def put(self, ids: Sequence[int], state: ClientState, rows: Sequence[int]) -> None: ...

    def put_common(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Setting:
    """The run that a compressed sum is made for.

    Attributes:
        layout: vector names of an upload and their lengths.
        spec: tensors of the uploaded model.
        ranks: R.
        memory: state of clients between rounds.
        new_sum: from a dtype to a sum for what is not compressed, of that dtype or exact (``aggregation.sum``).
    """

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
        return "lossy"

    def columns(self, layout: Mapping[str, int], spec: FlatSpec) -> Columns:
        """The columns of an upload that are compressed."""
        return Columns.of(layout, spec)

    def init_client(self, columns: Columns) -> ClientState:
        """The state of a client that never took part, name -> [1, d]; empty for a method without memory."""
        return {}

    def sum(self, setting: Setting) -> Reduce:
        """The sum that sends less."""
        ...


@dataclass(frozen=True)
class NoCompression(Compression):
    """Every number as it is: one all_reduce, 8 (R-1)/R D bytes from each rank in float32."""

    @property
    def delivery(self) -> Delivery:
        return "whole"

    def columns(self, layout: Mapping[str, int], spec: FlatSpec) -> Columns:
        return Columns(sum(layout.values()), ())

    def sum(self, setting: Setting) -> Reduce:
        return setting.new_sum(setting.spec.dtype)


@dataclass(frozen=True)
class Columns:
    """The columns of a packed row [L] that are compressed: ``tensors``, (start, shape) of each, ascending.

    Compressed are the trainable tensors of every vector that is as long as the model or its trainable part. The rest
    is sent as it is: BatchNorm's statistics, which noise could make negative, and vectors that are no model (a
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
        """The tensors of uploads with ``layout`` whose shapes are ``chosen``."""
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
    def compressed(self) -> int:
        """C, the number of columns that are compressed."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def plain(self) -> int:
        """The number of columns that are not."""
        return self.length - self.compressed

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``rows [..., L]`` to what is compressed, [..., C], and what is not, [..., L - C]."""
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for start, stop, compressed in self._ranges():
            parts[compressed].append(rows[..., start:stop])
        joined = [p[0] if len(p) == 1 else torch.cat(p, dim=-1) if p else rows[..., :0] for p in parts.values()]
        return joined[0], joined[1]

    def join(self, compressed: Tensor, plain: Tensor) -> Tensor:
        """The inverse of `split`, of vectors."""
        parts, at = [], {True: 0, False: 0}
        for start, stop, kind in self._ranges():
            source = compressed if kind else plain
            parts.append(source[at[kind] : at[kind] + stop - start].to(compressed.dtype))
            at[kind] += stop - start
        return torch.cat(parts)

    def _ranges(self) -> list[tuple[int, int, bool]]:
        """[start, stop) and whether it is compressed, covering all L columns in order, neighbours of a kind merged."""
        ranges: list[tuple[int, int, bool]] = []
        for start, shape in (*self.tensors, (self.length, (0,))):
            reached = ranges[-1][1] if ranges else 0
            for a, b, kind in ((reached, start, False), (start, start + prod(shape), True)):
                if a == b:
                    continue
                if ranges and ranges[-1][2] == kind:
                    a = ranges.pop()[0]
                ranges.append((a, b, kind))
        return ranges
