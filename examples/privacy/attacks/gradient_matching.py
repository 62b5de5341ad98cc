"""Gradient matching: search for inputs whose gradient is the one that was seen, for models of any kind.

    DLG     x, y = argmin || dL(x, y)/dw - g ||^2            y soft; L-BFGS           Zhu et al. 2019, Algorithm 1
    iDLG    the same for x only, the label read off g        L-BFGS                   Zhao et al. 2020
    cosine  x = argmin 1 - <dL(x, y)/dw, g> / (|| . || ||g||) + alpha TV(x)           Geiping et al. 2020, equation 4
            Adam on the sign of the gradient, steps cut by 10 after 3/8, 5/8 and 7/8, pixels kept in their range

``part`` is the stretch of the flat gradient that was seen, all of it by default: what else it holds is not compared.

Unlike the analytic inversion it needs no fully connected first layer, and it guarantees nothing: it may end in a local
minimum. That it fails is no evidence of privacy. L-BFGS needs a twice differentiable model (sigmoid or tanh, as
Zhu et al. use); the cosine with signs goes through ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.privacy.attacks.inversion import label as label_of
from fedddp.flat import FlatSpec
from fedddp.rng import generator

ALL = slice(None)


@dataclass(frozen=True)
class Reconstruction:
    """``x [n, ...]`` as the model gets it, ``y [n]`` labels, and the objective where the search ended."""

    x: Tensor
    y: Tensor
    objective: float


def dlg(module: nn.Module, gradient: Tensor, shape: Sequence[int], num_classes: int, **how: Any) -> Reconstruction:
    """Deep leakage from gradients: inputs [n, *shape] and soft labels together.

    ``gradient [P]`` is that of the mean cross-entropy over n examples at ``module``'s parameters. ``how``: part, n (1),
    steps (60; one is up to 20 evaluations), seed (0) and restarts (3): the best end point counts.
    """

    def start(draw: Callable[..., Tensor], n: int) -> list[Tensor]:
        return [draw(n, *shape), draw(n, num_classes)]

    def loss(x: Tensor, soft: Tensor) -> Tensor:
        return -(soft.softmax(dim=1) * F.log_softmax(module(x), dim=1)).sum(dim=1).mean()

    (x, soft), objective = _lbfgs(module, gradient, start, loss, **how)
    return Reconstruction(x, soft.argmax(dim=1), objective)


def idlg(module: nn.Module, gradient: Tensor, shape: Sequence[int], **how: Any) -> Reconstruction:
    """The same for one example, whose label is known beforehand from the last bias. ``how``: steps, seed, restarts."""
    y = torch.tensor([label_of(FlatSpec.of(module), gradient)], device=gradient.device)
    (x,), objective = _lbfgs(
        module, gradient, lambda draw, n: [draw(n, *shape)], lambda x: F.cross_entropy(module(x), y), **how
    )
    return Reconstruction(x, y, objective)


def _lbfgs(
    module: nn.Module,
    gradient: Tensor,
    start: Callable[[Callable[..., Tensor], int], list[Tensor]],
    loss: Callable[..., Tensor],
    n: int = 1,
    steps: int = 60,
    seed: int = 0,
    restarts: int = 3,
    part: slice = ALL,
) -> tuple[list[Tensor], float]:
    params = [p for p in module.parameters() if p.requires_grad]
    best: list[Tensor] = []
    lowest = float("inf")
    for attempt in range(restarts):
        stream = generator(seed, "gradient matching", attempt)

        def draw(*size: int, stream: torch.Generator = stream) -> Tensor:
            return torch.randn(*size, generator=stream, dtype=gradient.dtype).to(gradient.device).requires_grad_()

        unknown = start(draw, n)
        optimizer = torch.optim.LBFGS(unknown, max_iter=20, history_size=50, line_search_fn="strong_wolfe")

        def objective(unknown: list[Tensor] = unknown) -> Tensor:
            return (_flat_gradient(loss(*unknown), params) - gradient)[part].square().sum()

        def evaluated(unknown: list[Tensor] = unknown) -> float:
            value = objective(unknown)
            for t, g in zip(unknown, torch.autograd.grad(value, unknown), strict=True):
                t.grad = g
            return value  # type: ignore[return-value]  # L-BFGS reads the tensor

        for _ in range(steps):
            optimizer.step(evaluated)
        reached = float(objective(unknown).detach())
        if reached < lowest:
            best, lowest = [t.detach() for t in unknown], reached
    return best, lowest


def cosine(
    module: nn.Module,
    gradient: Tensor,
    shape: Sequence[int],
    y: Tensor,
    *,
    low: float,
    high: float,
    tv: float = 1e-3,
    steps: int = 1000,
    lr: float = 0.1,
    seed: int = 0,
    part: slice = ALL,
) -> Reconstruction:
    """Inputs [n, *shape] of known labels ``y [n]`` whose gradient points where ``gradient [P]`` does.

    ``low`` and ``high``: the range of pixels as the model gets them. ``tv``: weight alpha of the total variation
    (pictures are smooth); a larger batch wants more of it.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    draw = torch.randn(len(y), *shape, generator=generator(seed, "gradient matching"), dtype=gradient.dtype)
    x = draw.to(gradient.device).clamp_(low, high).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * k // 8 for k in (3, 5, 7)], gamma=0.1)
    value = torch.tensor(0.0)
    for _ in range(steps):
        found = _flat_gradient(F.cross_entropy(module(x), y), params)
        value = 1 - F.cosine_similarity(found[part], gradient[part], dim=0) + tv * total_variation(x)
        x.grad = torch.autograd.grad(value, [x])[0].sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return Reconstruction(x.detach(), y, float(value.detach()))


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of ``x [..., H, W]``, down plus across."""
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., :, 1:] - x[..., :, :-1]).abs().mean()


def _flat_gradient(loss: Tensor, params: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
