"""Regression: predict real numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import Dataset
from .losses import Loss, SquaredError
from .metrics import Errors, Sums
from .task import Task


@dataclass(frozen=True)
class Regressor(Task):
    """d real numbers an example. Outputs o stand for predictions o scale + shift, for each number."""

    loss_of: Loss = SquaredError()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    targets: ClassVar[str] = "real"
    classifies: ClassVar[bool] = False
    primary: ClassVar[str] = "r2"
    measured: ClassVar[str] = "mae"

    def predictions(self, outputs: Tensor) -> Tensor:
        """See `Task.predictions`: o scale + shift."""
        scale, shift = (torch.tensor(v, dtype=outputs.dtype, device=outputs.device) for v in (self.scale, self.shift))
        return outputs * scale + shift

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        """See `Task.answers`: the predicted numbers."""
        columns = predict(x).unbind(dim=-1)
        names = ["prediction"] if len(columns) == 1 else [f"prediction {i}" for i in range(len(columns))]
        return {name: column.tolist() for name, column in zip(names, columns, strict=True)}

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Task.loss`: of outputs against (y - shift) / scale."""
        return self.loss_of(outputs, self._standardised(outputs, y))

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The absolute error of each example, in units of its targets, mean over its numbers, [B]."""
        scale = torch.tensor(self.scale, dtype=outputs.dtype, device=outputs.device)
        return ((outputs - self._standardised(outputs, y)).abs() * scale).mean(dim=-1)

    def _standardised(self, outputs: Tensor, y: Tensor) -> Tensor:
        shift, scale = (torch.tensor(v, dtype=torch.float64, device=y.device) for v in (self.shift, self.scale))
        return ((y.double() - shift) / scale).to(outputs.dtype)

    @property
    def sums(self) -> Sequence[Sums]:
        return [Errors(self.shift, self.scale)]


@dataclass(frozen=True)
class Regression:
    """Predict real numbers; R2, mean absolute error (MAE) and RMSE, in units of the targets."""

    standardize: Annotated[
        bool,
        Field(description="train on (y - mean) / std of the training set's targets, which every rank then knows"),
    ] = True

    targets: ClassVar[str] = "real"
    natural: ClassVar[Loss] = SquaredError()

    def outputs(self, dataset: Dataset) -> int:
        """d."""
        return dataset.num_classes

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        d, shift, scale = dataset.num_classes, dataset.target_mean, dataset.target_std
        if not self.standardize or shift is None or scale is None:
            shift, scale = (0.0,) * d, (1.0,) * d
        return Regressor(make_model, d, loss, shift, scale)
