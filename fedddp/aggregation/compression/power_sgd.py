"""PowerSGD: the update of each weight matrix as a product of two thin ones, by one step of power iteration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...comm import Comm
from ...flat import FlatSpec
from ...rng import generator
from ...types import ClientState, Delivery
from ..reduce import Reduce
from .base import Columns, Compression, Setting

Shape = tuple[int, int, int]
"""Rows n and columns c of a weight matrix, and the rank r of its factors."""


@dataclass(frozen=True)
class PowerSGD(Compression):
    """Low-rank factors of each weight matrix's update, with error feedback.

    Vogels, Karimireddy, Jaggi 2019 (arXiv 1905.13727), Algorithms 1 and 2, on the updates of clients. For the update
    matrix M_k [n, c] of each layer and client, its memory e_k added, and Q [c, r] of the last round:

        P = sum_k n_k M_k Q         P^ = orthogonalize(P)
        Q = sum_k n_k M_k^T P^      mean of M_k ~ P^ Q^T / sum n     e_k <- M_k - P^ P^^T M_k

    Linear: both products are sums over clients. Two all_reduces, of P (with what is not compressed and the tail) and of
    Q: 8 (R-1)/R sum r (n + c) bytes from each rank. Convolutions are matrices of their output channels; biases, and
    matrices that the factors would not make smaller, are sent as they are. Biased (a projection), hence the memory; Q
    is kept too, so that the subspace improves from round to round. Both are in the checkpoint. QR orthogonalizes P, and
    Q's columns before the next round, which does not change their subspace.
    """

    rank: Annotated[int, Field(ge=1, le=10_000, description="r, columns of the factors")] = 4

    @property
    def delivery(self) -> Delivery:
        return "late"

    def columns(self, layout: Mapping[str, int], spec: FlatSpec) -> Columns:
        return Columns.of(layout, spec, self._worth_it)

    def init_client(self, columns: Columns) -> ClientState:
        return {"error": torch.zeros(1, columns.compressed)}

    def sum(self, setting: Setting) -> Reduce:
        return PowerSum(self, setting)

    def as_matrix(self, shape: tuple[int, ...]) -> Shape:
        """A layer's weights [out, ...] as a matrix."""
        n, c = shape[0], prod(shape[1:])
        return n, c, min(self.rank, n, c)

    def _worth_it(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        n, c, r = self.as_matrix(shape)
        return r * (n + c) < n * c


class PowerSum:
    """Two uncompressed sums, of the factors. A rank keeps its clients' updates until the first is known."""

    def __init__(self, method: PowerSGD, setting: Setting) -> None:
        self._columns, self._memory = method.columns(setting.layout, setting.spec), setting.memory
        self._new = method.init_client(self._columns)
        shapes = [method.as_matrix(shape) for _, shape in self._columns.tensors]
        self._shapes = {  # of the M, P and Q of each layer
            "M": [(n, c) for n, c, _ in shapes],
            "P": [(n, r) for n, _, r in shapes],
            "Q": [(c, r) for _, c, r in shapes],
        }
        self._kept: list[tuple[int, Tensor, Tensor]] = []
        self._dtype, self._growth = setting.spec.dtype, max(max(n, c) for n, c, _ in shapes) ** 0.5
        self._p_sum, self._q_sum = setting.new_sum(self._dtype), setting.new_sum(self._dtype)
        drawn = torch.randn(_numbers(self._shapes["Q"]), generator=generator(setting.seed, "power_sgd"))
        self._q_start = _flat(_orthogonal(_matrices(drawn, self._shapes["Q"])))

    def open(self, length: int, tail: int, total_weight: float) -> None:
        self._p_sum.open(_numbers(self._shapes["P"]) + self._columns.plain, tail, total_weight)
        self._q_sum.open(_numbers(self._shapes["Q"]), 0, total_weight)
        q = self._memory.common.get("q", self._q_start).to(self.tail.device, self._dtype)
        self._q = _matrices(q, self._shapes["Q"])
        self._kept.clear()

    @property
    def tail(self) -> Tensor:
        return self._p_sum.tail

    @property
    def bound(self) -> float:
        """The factors' entries are sums of n or c products with a unit column: no more than sqrt(n) times M's."""
        return self._p_sum.bound / self._growth

    def add(self, rows: Tensor, weight: Tensor, ids: Sequence[int] = ()) -> None:
        compressed, plain = self._columns.split(rows)
        corrected = compressed + self._memory.get(ids, self._new)["error"].to(compressed)  # M_k [K, C]
        if corrected.numel() and not float(corrected.abs().amax()) <= self.bound:
            raise ValueError(f"its update and what it remembers together exceed {self.bound:g}")
        for i, client in enumerate(ids):
            p = [m @ q for m, q in zip(_matrices(corrected[i], self._shapes["M"]), self._q, strict=True)]
            self._p_sum.add(torch.cat([_flat(p), plain[i]])[None], weight[i : i + 1], [client])
            self._kept.append((client, weight[i : i + 1], corrected[i]))

    def total(self, comm: Comm, round: int) -> Tensor:
        sums = self._p_sum.total(comm, round)
        p, plain = sums.split([_numbers(self._shapes["P"]), self._columns.plain])
        basis = [b.to(self._dtype) for b in _orthogonal(_matrices(p, self._shapes["P"]))]  # P^, the same on every rank
        for client, weight, row in self._kept:
            m = _matrices(row, self._shapes["M"])
            q = [m.T @ b for m, b in zip(m, basis, strict=True)]
            self._q_sum.add(_flat(q)[None], weight, [client])
            left = [m - b @ q.T for m, b, q in zip(m, basis, q, strict=True)]
            self._memory.put([client], {"error": _flat(left)[None].cpu()}, [0])
        self._kept.clear()
        q_sum = self._q_sum.total(comm, round)
        q = _matrices(q_sum, self._shapes["Q"])
        if q_sum.any():  # else nobody took part, or nobody moved
            self._memory.put_common({"q": _flat(_orthogonal(q)).to(self._dtype)})
        approximated = [b.to(q) @ q.T for b, q in zip(basis, q, strict=True)]
        return self._columns.join(_flat(approximated), plain)


def _matrices(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    return [part.view(shape) for part, shape in zip(flat.split([a * b for a, b in shapes]), shapes, strict=True)]


def _flat(matrices: Sequence[Tensor]) -> Tensor:
    return torch.cat([m.reshape(-1) for m in matrices])


def _numbers(shapes: Sequence[tuple[int, int]]) -> int:
    return sum(a * b for a, b in shapes)


def _orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Orthonormal columns that span each matrix's (and others, where those do not have full rank).

    On CPU in float64, so that the bits that are left of it are the same on every rank's device.
    """
    return [torch.linalg.qr(m.double().cpu()).Q.to(m.device) for m in matrices]
