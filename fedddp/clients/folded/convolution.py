"""A convolution of K clients: one product over unfolded patches where those are small, else oneDNN's or cuDNN's own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import FoldedLayer

SMALL_PATCH = 128  # numbers: first layers on grey or colour images, 3 times as fast by patches on a CPU


class FoldedConv2d(FoldedLayer):
    """Client k's convolution of its part of ``x [K B, C, H, W]``; zero padding.

    A CPU pools channels-last outputs ten times as fast and a position's channels are one row, but a model that calls
    ``view`` on them needs the ``layout`` `torch.contiguous_format`.
    """

    def __init__(self, name: str, plain: nn.Conv2d) -> None:
        super().__init__(name, plain)
        self.stride, self.dilation, self.kernel = plain.stride, plain.dilation, plain.kernel_size
        self.out_channels, self.padding = plain.out_channels, _both_sides(plain)
        self.by_patches = plain.in_channels * plain.kernel_size[0] * plain.kernel_size[1] <= SMALL_PATCH

    @staticmethod
    def stands_for(plain: nn.Conv2d) -> bool:
        """Whether this layer computes what ``plain`` does."""
        return plain.groups == 1 and plain.padding_mode == "zeros" and -1 not in _both_sides(plain)

    def forward(self, x: Tensor) -> Tensor:
        self.use()
        return _Conv2d.apply(x, self.token, self)  # pyright: ignore[reportReturnType]

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What each output position sees, [K, B H' W', kh kw C], and (H', W')."""
        (ph, pw), (sh, sw), (dh, dw), (kh, kw) = self.padding, self.stride, self.dilation, self.kernel
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).contiguous()  # [K B, H, W, C]
        n, height, width, channels = padded.shape
        out = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
        a, b, c, d = padded.stride()
        windows = padded.as_strided((n, *out, kh, kw, channels), (a, sh * b, sw * c, dh * b, dw * c, d))
        return windows.reshape(self.num_clients, -1, kh * kw * channels), out

    def product(self, patches: Tensor, out: tuple[int, int]) -> Tensor:
        """The outputs [K B, O, H', W'] from the patches."""
        weight, bias = self.weight, self.bias
        by_row = weight.permute(0, 3, 4, 2, 1).reshape(len(weight), patches.shape[-1], -1)  # [K, kh kw C, O]
        shape = patches.shape[0] * patches.shape[1] // (out[0] * out[1]), self.out_channels, *out
        y = torch.empty(shape, dtype=patches.dtype, device=patches.device, memory_format=torch.channels_last)
        rows = y.permute(0, 2, 3, 1).view(len(weight), -1, self.out_channels)
        if bias is None:
            torch.bmm(patches, by_row, out=rows)
        else:
            torch.baddbmm(bias.unsqueeze(1), patches, by_row, out=rows)
        return y

    def convolve(self, x: Tensor) -> Tensor:
        """The library's convolution, [K B, O, H', W']."""
        outputs = [
            F.conv2d(part, weight, bias, self.stride, self.padding, self.dilation, groups)
            for part, weight, bias, groups in self._calls(x)
        ]
        return self._unpacked(outputs)

    def gradients(self, x: Tensor, dy: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        """The library's gradients: of the input [K B, C, H, W] and of the weights [K, O, C, kh, kw]."""
        parts = [
            torch.ops.aten.convolution_backward(
                d, part, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], groups, [*wanted, False]
            )
            for (part, weight, _, groups), d in zip(self._calls(x), self._packed(dy), strict=True)
        ]
        dx = self._unpacked([p[0] for p in parts]) if wanted[0] else None
        return dx, torch.cat([p[1] for p in parts]).view(self.weight.shape) if wanted[1] else None

    def rows(self, dy: Tensor) -> Tensor:
        """The output gradients of each output position, [K, B H' W', O]."""
        return dy.permute(0, 2, 3, 1).reshape(self.num_clients, -1, self.out_channels)

    def learn_from(self, x: Tensor | None, patches: Tensor | None, dy: Tensor, back: bool) -> Tensor | None:
        """Take in the gradient, from the patches where there are some; the input's gradient if it goes ``back``.

        One method does both, since the library gives both in one call. ``x`` is None where neither needs it.
        """
        dx, weight_grad, rows = None, None, self.rows(dy)
        if x is not None:
            dx, weight_grad = self.gradients(x, dy, (back, patches is None))
        if patches is not None:
            by_row = torch.bmm(patches.mT, rows)  # [K, kh kw C, O]
            weight_grad = by_row.unflatten(1, (*self.kernel, -1)).permute(0, 4, 3, 1, 2)
        assert weight_grad is not None
        self.learn("weight", weight_grad)
        self.learn("bias", rows.sum(dim=1))
        return dx

    def _calls(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None, int]]:
        """The arguments of each convolution: on a GPU one of K groups, on a CPU K of one group, which is no slower."""
        parts, weight = self._packed(x), self.weight
        calls, groups = len(parts), len(weight) // len(parts)
        weights = weight.reshape(calls, groups * weight.shape[1], *weight.shape[2:])
        biases = self.bias.reshape(calls, -1).unbind() if self.bias is not None else [None] * calls
        return [(part, w, b, groups) for part, w, b in zip(parts, weights, biases, strict=True)]

    def _packed(self, x: Tensor) -> list[Tensor]:
        """[B, groups C, H, W] for each call from [K B, C, H, W]; on a CPU nothing is copied.

        There channels lie innermost: with AVX-512 convolutions are 1.3 times as fast that way, with AVX2 no slower.
        """
        if not x.is_cuda:
            return list(x.contiguous(memory_format=torch.channels_last).unflatten(0, (self.num_clients, -1)).unbind())
        return [x.unflatten(0, (self.num_clients, -1)).transpose(0, 1).flatten(1, 2).contiguous()]

    def _unpacked(self, outputs: list[Tensor]) -> Tensor:
        """[B, groups C, H, W] of each call, back to [K B, C, H, W]."""
        if len(outputs) == self.num_clients:
            folded = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        else:
            (grouped,) = outputs
            by_client = grouped.unflatten(1, (self.num_clients, -1)).transpose(0, 1)
            folded = by_client.flatten(0, 1)
        return folded.contiguous(memory_format=torch.channels_last)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: FoldedConv2d) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.layer, ctx.x, ctx.patches = layer, x, None
        if not layer.by_patches:
            return layer.convolve(x).contiguous(memory_format=layer.layout)
        ctx.x = x if ctx.needs_input_grad[0] else None
        ctx.patches, out = layer.patches(x)
        return layer.product(ctx.patches, out).contiguous(memory_format=layer.layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        layer: FoldedConv2d = ctx.layer
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        return layer.learn_from(ctx.x, ctx.patches, dy, ctx.needs_input_grad[0]), None, None


def _both_sides(plain: nn.Conv2d) -> tuple[int, ...]:
    """The padding of each side, height and width; -1 where the two sides of one axis differ."""
    if plain.padding == "valid":
        return 0, 0
    if plain.padding == "same":
        totals = [d * (k - 1) for d, k in zip(plain.dilation, plain.kernel_size, strict=True)]
        return tuple(-1 if total % 2 else total // 2 for total in totals)
    return tuple(int(p) for p in plain.padding)
