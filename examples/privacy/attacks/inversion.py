"""Analytic inversion: a fully connected first layer writes its input into its own gradient.

With z = W x + b and a loss L of one example, dL/dW_i = dL/dz_i x and dL/db_i = dL/dz_i for every unit i, so that

    x = dL/dW_i / dL/db_i        for any unit with dL/db_i != 0

exactly, whatever follows the layer (Phong et al. 2018, section 3; Geiping et al. 2020, proposition 1). An update of one
SGD step is -lr times the gradient, and the factor cancels. Over a batch or a sum of clients the ratio of unit i
is a weighted mean of the examples for which it is active: behind a ReLU some units are active for one example only, and
their ratios are single examples. The label of one example is the only class whose last bias has a negative gradient
(softmax - one-hot; Zhao et al. 2020, iDLG). Letters: U units, P pixels, D length of the flat model vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fedddp.flat import FlatSpec


@dataclass(frozen=True)
class FirstLayer:
    """What is known of the first layer's part of an update: ``weight [U, P]`` and ``bias [U]``; NaN is unknown."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, spec: FlatSpec, update: Tensor) -> FirstLayer:
        """The first layer's part of ``update [D]``, a flat delta or gradient in any unit and sign.

        Raises ValueError if the model does not begin with a fully connected layer with a bias.
        """
        return cls.of_chunk(spec, update[: spec.dim], 0)

    @classmethod
    def of_chunk(cls, spec: FlatSpec, chunk: Tensor, offset: int) -> FirstLayer:
        """The same from a stretch of the vector, ``chunk = update[offset : offset + len(chunk)]``."""
        if len(spec.shapes) < 2 or len(spec.shapes[0]) != 2 or spec.shapes[1] != spec.shapes[0][:1]:
            raise ValueError("the model does not begin with a fully connected layer and its bias")
        units, pixels = spec.shapes[0]
        known = torch.full((units * (pixels + 1),), torch.nan, dtype=torch.float64)
        part = chunk[: max(0, len(known) - offset)].detach().cpu().double()
        known[offset : offset + len(part)] = part
        return cls(known[: units * pixels].view(units, pixels), known[units * pixels :])


def one_example(layer: FirstLayer, background: float) -> Tensor:
    """The example ``x [P]`` behind an update of one example and one step.

    Where biases are known: least squares over their units, x = sum_i b_i W_i / sum_i b_i^2, the best estimate if the
    update has noise of equal size everywhere. Else only the direction of x is known, as the leading right singular
    vector of the rows, and its scale follows from the value of the empty border of a picture, ``background`` (of
    pixels as the model gets them). NaN where nothing is known.
    """
    whole = ~layer.weight.isnan().any(dim=1)
    both = whole & ~layer.bias.isnan()
    if both.any():
        bias, weight = layer.bias[both], layer.weight[both]
        return (bias @ weight) / bias.square().sum()
    rows = layer.weight[whole]
    if not len(rows):
        return layer.weight[0] * torch.nan
    gram = rows @ rows.t()
    loads = torch.linalg.eigh(gram).eigenvectors[:, -1]  # of the largest eigenvalue: how strongly each row holds x
    direction = loads @ rows
    return direction * (background / direction[_border(len(direction))].median())


def _border(pixels: int) -> Tensor:
    """Which of the pixels of a square picture lie at its edge, bool [P]."""
    side = int(pixels**0.5)
    edge = torch.ones(side, side, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    return edge.flatten()


def candidates(layer: FirstLayer, low: float, high: float, most: int = 64) -> Tensor:
    """What may be single examples in the update of many, at most ``most`` of the U ratios W_i / b_i, [n, P].

    The most plausible first, judged without knowing any of the examples: pixels have to lie in their range, [``low``,
    ``high``] as the model gets them. A mean of examples may lie there too; so, of those in range, the ones with the
    most pixels as empty as the background, ``low``, come first. Ratios that are not finite are left out.
    """
    ratio = layer.weight / layer.bias.unsqueeze(1)
    ratio = ratio[ratio.isfinite().all(dim=1)]
    slack = 0.02 * (high - low)
    outside = (ratio - ratio.clamp(low, high)).abs().amax(dim=1)
    outside = torch.where(outside < slack, 0.0, outside)
    empty = ((ratio - low).abs() < slack).sum(dim=1)
    order = sorted(range(len(ratio)), key=lambda i: (float(outside[i]), -int(empty[i])))
    return ratio[order[:most]]


def label(spec: FlatSpec, gradient: Tensor) -> int:
    """The label of the one example whose ``gradient [D]`` this is: where the last bias falls.

    Raises ValueError if the model does not end with a bias.
    """
    if len(spec.shapes[-1]) != 1:
        raise ValueError("the model does not end with a bias")
    return int(gradient[spec.dim - prod(spec.shapes[-1]) : spec.dim].argmin())
