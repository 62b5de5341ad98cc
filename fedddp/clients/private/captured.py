"""What layers keep of a backward pass until the norms of the examples' gradients are known.

Each piece gives the squared norm of every example's gradient of one or two parameters, [K, B], and then adds up the
clipped ones, mostly without ever having any of them.

Letters: K clients, B examples of each, T rows of an example, i inputs and o outputs of a layer.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .oracle import squared_norm, without


class Captured(Protocol):
    """A piece of the gradients of K B examples."""

    @property
    def numbers(self) -> int:
        """Held in memory."""
        ...

    def squared_norms(self) -> Tensor:
        """Of each example's part of the gradient, float64 [K, B]."""
        ...

    def add_to(self, sums: dict[str, Tensor], factor: Tensor, good: Tensor) -> None:
        """Add the sum with ``factor [K, B]`` to ``sums``, [K, *shape] by the parameters' names; see `without`."""
        ...


class Rows:
    """A matrix that acts on rows, ``x [K, B, T, i]``, and its bias: sum_t dy_t x_t^T with ``dy [K, B, T, o]``.

    ``into`` shows the matrix's place [K, *shape] as what flattens to [K, o, i].
    """

    def __init__(
        self, x: Tensor, dy: Tensor, names: tuple[str, str | None], into: Callable[[Tensor], Tensor] = lambda w: w
    ) -> None:
        self.x, self.dy, self._names, self._into = x, dy, names, into
        self.bias = dy.sum(dim=2) if names[1] else None  # [K, B, o]
        rows, (i, o) = x.shape[2], (x.shape[3], dy.shape[3])
        self.each: Tensor | None = None  # [K, B, o, i]
        if rows * (i + o) > i * o:
            self.each = torch.matmul(dy.mT, x)

    @property
    def numbers(self) -> int:
        """See `Captured.numbers`."""
        return self.x.numel() + self.dy.numel() + (self.each.numel() if self.each is not None else 0)

    def squared_norms(self) -> Tensor:
        """Of the matrix's and the bias's gradients together."""
        biases = squared_norm(self.bias) if self.bias is not None else 0.0
        if self.each is not None:
            return squared_norm(self.each) + biases
        if self.x.shape[2] == 1:
            return squared_norm(self.x.squeeze(2)) * squared_norm(self.dy.squeeze(2)) + biases
        return _alike(torch.matmul(self.x, self.x.mT), self.dy) + biases

    def add_to(self, sums: dict[str, Tensor], factor: Tensor, good: Tensor) -> None:
        """See `Captured.add_to`."""
        name, bias = self._names
        weight = self._into(sums[name])
        if self.each is not None:
            weight += torch.bmm(factor.unsqueeze(1), without(self.each, good).flatten(2)).view_as(weight)
        else:
            dy = without(self.dy, good) * factor.view(*factor.shape, 1, 1)
            rows = dy.flatten(1, 2).mT, without(self.x, good).flatten(1, 2)
            if weight.dim() == 3:
                weight.baddbmm_(*rows)
            else:
                weight += torch.bmm(*rows).view_as(weight)
        if bias is not None and self.bias is not None:
            sums[bias] += torch.bmm(factor.unsqueeze(1), without(self.bias, good)).squeeze(1)


class LookUps:
    """A table whose rows ``ids [K, B, T]`` were looked up: each gets its dy, ``dy [K, B, T, E]``."""

    def __init__(self, ids: Tensor, dy: Tensor, name: str) -> None:
        self.ids, self.dy, self._name = ids, dy, name

    @property
    def numbers(self) -> int:
        """See `Captured.numbers`."""
        return self.dy.numel() + self.ids.numel() * self.ids.shape[-1]

    def squared_norms(self) -> Tensor:
        """sum_st (id_s = id_t) dy_s dy_t, see `Captured.squared_norms`."""
        return _alike((self.ids.unsqueeze(-1) == self.ids.unsqueeze(-2)).to(self.dy.dtype), self.dy)

    def add_to(self, sums: dict[str, Tensor], factor: Tensor, good: Tensor) -> None:
        """See `Captured.add_to`."""
        dy = without(self.dy, good) * factor.view(*factor.shape, 1, 1)
        client = torch.arange(len(dy), device=dy.device).view(-1, 1, 1).expand_as(self.ids)
        sums[self._name].index_put_((client, self.ids), dy, accumulate=True)


class Each:
    """A small parameter: the gradient of each example, ``each [K, B, *shape]``."""

    def __init__(self, each: Tensor, name: str) -> None:
        self.each, self._name = each, name

    @property
    def numbers(self) -> int:
        """See `Captured.numbers`."""
        return self.each.numel()

    def squared_norms(self) -> Tensor:
        """See `Captured.squared_norms`."""
        return squared_norm(self.each)

    def add_to(self, sums: dict[str, Tensor], factor: Tensor, good: Tensor) -> None:
        """See `Captured.add_to`."""
        total = torch.bmm(factor.unsqueeze(1), without(self.each, good).flatten(2))
        sums[self._name] += total.view_as(sums[self._name])


def _alike(x: Tensor, dy: Tensor) -> Tensor:
    """sum_st x_st dy_s dy_t, float64 [K, B], from ``x [K, B, T, T]``."""
    alike = x.double() * torch.matmul(dy, dy.mT).double()
    return alike.sum(dim=(2, 3)).clamp_(min=0)  # rounding may go below an exact 0
