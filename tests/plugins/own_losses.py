"""Losses of a user's own, named by import path in tests."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Poly:
    """Cross-entropy + epsilon (1 - p_y) (Leng et al. 2022): complete, as a user writes it."""

    epsilon: float = 1.0

    def __call__(self, outputs, y):
        log_p = torch.log_softmax(outputs, dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        return -log_p + self.epsilon * (1 - log_p.exp())


@dataclass(frozen=True)
class Averaged(Poly):
    def __call__(self, outputs, y):
        return super().__call__(outputs, y).mean()


@dataclass(frozen=True)
class Centred(Poly):
    """Each example's loss depends on the whole batch."""

    def __call__(self, outputs, y):
        return super().__call__(outputs - outputs.mean(dim=0), y)


@dataclass(frozen=True)
class Constant(Poly):
    def __call__(self, outputs, y):
        return torch.ones(len(y))


@dataclass(frozen=True)
class Raising(Poly):
    def __call__(self, outputs, y):
        return outputs[y.float()]
