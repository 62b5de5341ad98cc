"""Check and convert inputs: dense tensors of pixels (uint8), floating-point or whole numbers, all finite."""

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..comm.world import memory
from ..errors import UsageError
from .skew import Pictures

KINDS = {torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64}
KINDS |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""Types of inputs: for the others torch lacks operations as plain as the maximum."""


class Shape(tuple[int, ...]):
    """The shape of one input, and what a model has to know of it besides.

    Attributes:
        vocabulary: number of token ids; 0 for inputs that are no tokens.
        per_position: whether a target is predicted at each position, not one for the whole input.
    """

    vocabulary: int
    per_position: bool

    def __new__(cls, sizes: Iterable[int], vocabulary: int = 0, per_position: bool = False) -> Self:
        shape = super().__new__(cls, sizes)
        shape.vocabulary, shape.per_position = vocabulary, per_position
        return shape


def as_inputs(values: Any, what: str) -> Tensor:
    """Tensors, arrays, pictures or nested lists of numbers as a tensor on the CPU; ``what`` they are, for the line that
    ValueError says."""
    if isinstance(values, Tensor):
        if values.is_meta or values.is_nested:
            kind = "without data (on the meta device)" if values.is_meta else "a nested tensor"
            raise UsageError(
                f"{what} are {kind}; give a tensor [n, ...] with an example in each row", code="inputs-form"
            )
        return values.detach().cpu()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise UsageError(
            f"{what}: {np.ma.count_masked(values)} numbers are masked; fill in what is missing", code="inputs-missing"
        )
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(
            f"{what} differ in shape; bring them to one shape (resize pictures, pad sequences)", code="inputs-shapes"
        ) from None
    if array.dtype.kind not in "biufc":
        raise UsageError(
            f"{what} are {_kind(array)}; give numbers (a tensor, an array or a picture)", code="inputs-type"
        )
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:
        raise UsageError(
            f"{what} are {array.dtype}, which torch does not have; convert them to float32", code="inputs-type"
        ) from None


def channels_first(x: Tensor) -> Tensor:
    """uint8 pictures [n, H, W] or [n, H, W, C] as [n, C, H, W]; everything else as it is."""
    if x.dtype != torch.uint8:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    last = x.dim() == 4 and (x.shape[-1] in (1, 3) or (x.shape[-1] in (2, 4) and x.shape[1] > 4))
    return x.permute(0, 3, 1, 2).contiguous() if last else x


def moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels scaled to [0, 1]: a channel's where there are channels [n, C, H, W],
    else of all. (0, 1) for inputs that are no pixels, which nothing normalises."""
    channels = x.shape[1] if x.dim() == 4 else 1
    if x.dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    first = 256 * torch.arange(channels)[:, None]
    for some in x.split(max(1, 2**20 * len(x) // x.numel())):  # 8 MB of whole numbers at a time
        pixels = some.transpose(0, 1) if x.dim() == 4 else some
        counts += (pixels.reshape(channels, -1) + first).flatten().bincount(minlength=256 * channels).view_as(counts)
    values, n = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = (counts * values).sum(1) / n
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1).clamp(min=1)).sqrt().clamp(min=1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())


class Normalizer:
    """Turn uint8 pixels into floating point, (x / 255 - mean) / std per channel; cast other inputs.

    A dataset makes its own, see `Dataset.normalizer`.

    Args:
        mean: the mean of pixels scaled to [0, 1], one number per channel, or one for all.
        std: their standard deviation, likewise.
        dtype: the type of the result.
        device: where inputs are normalised.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.mean, self.std, self.dtype = mean, std, dtype
        spread = torch.tensor(std, dtype=torch.float64)
        shape = (-1, 1, 1) if len(mean) > 1 else ()
        self._scale = (1 / (255 * spread)).to(device, dtype).reshape(shape)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).to(device, dtype).reshape(shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Return inputs for a model, of the shape of ``x`` ([..., C, H, W] where there are several channels)."""
        if x.dtype == torch.uint8:
            return x.to(self.dtype).mul_(self._scale).add_(self._shift)
        return x.to(self.dtype, copy=True) if x.is_floating_point() else x.clone()  # a model may change its input

    def pictures(self, like: Tensor) -> Pictures:
        """Return how examples of the shape of ``like [...]`` look once they are normalised, for a skew."""
        black = self(torch.zeros_like(like))
        unit = self(torch.full_like(like, 255)) - black if like.dtype == torch.uint8 else torch.ones_like(black)
        return Pictures(black, unit)


def check_inputs(train: Tensor, test: Tensor) -> None:
    """Raise ValueError for inputs that no model can be trained on, in one line that says what to do."""
    for part, x in (("training", train), ("test", test)):
        if x.layout != torch.strided or x.dtype not in KINDS:
            kind = str(x.dtype).removeprefix("torch.") if x.layout == torch.strided else f"sparse ({x.layout})"
            raise UsageError(
                f"{part} inputs are {kind}; give dense real numbers (two channels of complex ones; token ids as int64)",
                code="inputs-type",
            )
        if not x[0].numel():
            raise UsageError(f"{part} inputs are of shape {list(x.shape[1:])}: they are empty", code="inputs-empty")
        _refuse_holes(x, part)
    if train.dtype != test.dtype and not (train.is_floating_point() and test.is_floating_point()):
        raise UsageError(
            f"training inputs are {train.dtype}, test inputs {test.dtype}; give both as one type",
            code="inputs-sets-differ",
        )


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raise ValueError if ``what`` takes more bytes than the machine has, before they are asked for."""
    if needed > memory():
        raise UsageError(
            f"{what} take {needed / 1e9:,.0f} GB; this machine has {memory() / 1e9:,.0f} GB: {remedy}",
            code="inputs-memory",
        )


def check_range(x: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError where casting ``x`` to ``dtype``, in which a run computes, makes numbers infinite."""
    if x.dtype == torch.float64 != dtype and not torch.isfinite(x.abs().max().to(dtype)):
        raise UsageError(
            f"inputs reach {float(x.abs().max()):.3g}, which {dtype} cannot hold; scale them, or use "
            "client.precision=float64",
            code="inputs-range",
        )


def _refuse_holes(x: Tensor, part: str) -> None:
    if not x.is_floating_point():
        return
    # A part at a time, since a sum in float64 copies it; as numbers, since small tensors kept would fragment the heap.
    if math.isfinite(sum(part.sum(dtype=torch.float64).item() for part in x.reshape(-1).split(2**20))):
        return
    bad = ~torch.isfinite(x).flatten(1).all(1) if x.dim() > 1 else ~torch.isfinite(x)
    if not bad.any():  # their sum alone is infinite
        return
    kinds = {"NaN": x.isnan().any(), "infinite values": x.isinf().any()}
    found = " or ".join(kind for kind, there in kinds.items() if there)
    raise UsageError(
        f"{int(bad.sum())} of {len(x)} {part} inputs hold {found}, first example {int(bad.int().argmax())}; take these "
        "examples out, or fill in what is missing",
        code="inputs-not-finite",
    )


def _kind(array: np.ndarray[Any, Any]) -> str:
    return "text" if array.dtype.kind in "US" else "Python objects" if array.dtype.kind == "O" else str(array.dtype)
