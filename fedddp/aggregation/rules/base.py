"""The interface of robust aggregation rules: from the updates of all clients, column by column, to one update.

Letters: m clients of a round, c columns of one rank, d length of a whole update (several vectors: side by side).

A rank has ``x [m, c]``: its columns of every client's update, in ascending order of the clients. The norms and dot
products of whole rows are sums over columns: each rank computes the part of its own, one small all_reduce adds them up,
and every rank combines its columns in the same way.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

COLUMNS_AT_ONCE = 1 << 15
"""Columns that are sorted, or multiplied in float64, together: some megabytes for tens of clients."""


class Rule(ABC):
    """From single updates to one. A rule's dataclass holds its configuration keys."""

    needs: ClassVar[str] = ""
    """The condition on the number of updates, in the paper's letters."""
    streams: ClassVar[bool] = False
    """True if a running sum gives the same result, so that no single update has to be kept."""
    bit_stable: ClassVar[bool] = True
    """True if the last bits of the result do not depend on the number of ranks."""

    @property
    def least(self) -> int:
        """The smallest number of updates that the rule works with."""
        return 1

    @property
    def remembers(self) -> bool:
        """True if `partial` and `combine` get the last round's result as one more row, behind the clients'."""
        return False

    @property
    def client_momentum(self) -> float:
        """beta of the momentum with which clients upload their updates; 0 = none."""
        return 0.0

    def facing(self, num_byzantine: int) -> Self:
        """The rule against ``num_byzantine`` clients, unless its own keys give a number."""
        return self

    def partial(self, x: Tensor) -> Tensor | None:
        """The part of these columns in the sums over whole rows, float64; None if the rule needs none."""
        return None

    @abstractmethod
    def combine(self, x: Tensor, weight: Tensor, known: Tensor | None) -> Tensor:
        """The columns [c] of the result. ``weight [m]`` float64, above 0; ``known``: all ranks' `partial`, summed."""

    def finish(self, result: Tensor, stream: torch.Generator) -> Tensor:
        """The whole result [d], the same on every rank, as the server gets it; ``stream``: randomness of the round."""
        return result


@dataclass(frozen=True)
class ByzantineRule(Rule):
    """A rule made for a number f of Byzantine clients."""

    num_byzantine: Annotated[
        int | None,
        Field(
            ge=0, le=10_000_000, description="f, clients that may be Byzantine; default attack.num_clients, at least 1"
        ),
    ] = None

    @property
    def f(self) -> int:
        return 1 if self.num_byzantine is None else self.num_byzantine

    def facing(self, num_byzantine: int) -> Self:
        return replace(self, num_byzantine=num_byzantine) if self.num_byzantine is None else self


class Coordinatewise(Rule):
    """Base class of rules that treat each coordinate by itself."""

    def combine(self, x: Tensor, weight: Tensor, known: Tensor | None) -> Tensor:
        return torch.cat([self.columns(part, weight) for part in x.split(COLUMNS_AT_ONCE, dim=1)])

    @abstractmethod
    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        """The result [c] for ``x [m, c]``."""


class Combination(Rule):
    """Base class of rules whose result is a combination of the rows, sum_i a_i x_i, where a follows from their Gram
    matrix G.

    If the rule `remembers`, the last row is the last round's result: there is one row more than there are weights.
    Iterations send nothing, since the distance of a row from any combination z = sum_j a_j x_j is
    |x_i - z|^2 = G_ii - 2 (G a)_i + a' G a.
    """

    bit_stable = False

    def partial(self, x: Tensor) -> Tensor | None:
        return gram(x)

    def combine(self, x: Tensor, weight: Tensor, known: Tensor | None) -> Tensor:
        assert known is not None
        return self.coefficients(known, weight.to(known)).to(x) @ x

    @abstractmethod
    def coefficients(self, known: Tensor, weight: Tensor) -> Tensor:
        """a [rows], float64, from the Gram matrix ``known [rows, rows]``, or from the sum of another `partial`."""


def gram(x: Tensor) -> Tensor:
    """x x' [m, m] in float64 (distances are differences of its entries), symmetric to the last bit."""
    total = x.new_zeros(len(x), len(x), dtype=torch.float64)
    for part in x.split(COLUMNS_AT_ONCE, dim=1):
        wide = part.double()
        total += wide @ wide.t()
    return (total + total.t()) / 2


def distances(gram: Tensor, coefficients: Tensor) -> Tensor:
    """|x_i - z| [m] of each row from the combination z of all."""
    along = gram @ coefficients
    return (gram.diagonal() - 2 * along + coefficients @ along).clamp(min=0).sqrt()


def summed(rows: Tensor) -> Tensor:
    """The sum [c] of ``rows [m, c]``, row after row: the same bits for a column whatever lies beside it."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
