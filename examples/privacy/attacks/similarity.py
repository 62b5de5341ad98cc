"""How close a reconstruction is to the picture: PSNR and SSIM, and what is to be compared with.

    PSNR(a, b) = -10 log10 mean (a - b)^2                                                      in dB, pixels in [0, 1]
    SSIM(a, b) = mean over windows of (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2))

with means m, variances s^2 and covariance s_ab under an 11 x 11 Gaussian window of standard deviation 1.5, C1 = 0.01^2,
C2 = 0.03^2, windows inside the picture only (Wang et al. 2004, "Image quality assessment", equations 13 to 17). Two
digits that have nothing to do with each other are 9 dB apart in the median, so a figure means nothing by itself:
`Baselines` says how far one gets without having seen the update at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CEILING = 200.0
"""PSNR of two equal pictures, which would be infinite, in dB."""
PAIRS = 4000
"""Of a target and another picture: at the 99th percentile, 40 of them are above."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures ``a [..., H, W]`` and ``b [..., H, W]`` in [0, 1], in dB, [...]."""
    mse = (a.double() - b.double()).square().mean(dim=(-2, -1))
    return (-10 * mse.clamp(min=10 ** (-CEILING / 10)).log10()).float()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of grey pictures ``a [..., H, W]`` and ``b [..., H, W]`` in [0, 1], at most 1, [...].

    Raises ValueError for pictures smaller than the window.
    """
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM looks through a window of 11 x 11 pixels; these pictures are {list(a.shape[-2:])}")
    a, b = torch.broadcast_tensors(a.double(), b.double())
    shape = a.shape[:-2]
    x, y = (t.reshape(-1, 1, *t.shape[-2:]) for t in (a, b))
    line = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    line = (line / line.sum()).to(x.device)

    def blurred(t: Tensor) -> Tensor:  # the window is a product of two lines
        return F.conv2d(F.conv2d(t, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.mean(dim=(-3, -2, -1)).reshape(shape).float()


@dataclass(frozen=True)
class Baselines:
    """What guessing gives: (PSNR in dB, SSIM) of the mean picture (median over targets) and of another picture.

    ``another``: the 99th percentile over pairs, that is, a lucky guess.
    """

    mean_image: tuple[float, float]
    another: tuple[float, float]

    @classmethod
    def of(cls, targets: Tensor, others: Tensor) -> Baselines:
        """From pictures ``targets [n, H, W]`` and pictures that are not among them, ``others [m, H, W]``."""
        mean = others.mean(dim=0)
        turns = range(max(1, PAIRS // len(targets)))
        guesses = [others.roll(turn, dims=0)[torch.arange(len(targets)) % len(others)] for turn in turns]
        levels = [torch.cat([measure(targets, guess) for guess in guesses]) for measure in (psnr, ssim)]
        return cls(
            (float(psnr(targets, mean).median()), float(ssim(targets, mean).median())),
            (float(levels[0].quantile(0.99)), float(levels[1].quantile(0.99))),
        )


@dataclass(frozen=True)
class Match:
    """For each target, the closest of the candidates: which one [n], its PSNR [n] in dB and SSIM [n]."""

    index: Tensor
    psnr: Tensor
    ssim: Tensor


def closest(candidates: Tensor, targets: Tensor) -> Match:
    """Match every one of ``targets [n, H, W]`` with the closest of ``candidates [c, H, W]``, by PSNR.

    The matching looks at the truth, which an attacker has not. Therefore the same is to be done with pictures that the
    attacked model has never seen: what they reach is luck (a held-out control). Raises ValueError without candidates.
    """
    if not len(candidates):
        raise ValueError("there are no candidates")
    level = psnr(candidates.unsqueeze(0), targets.unsqueeze(1))  # [n, c]
    best, index = level.max(dim=1)
    return Match(index, best, ssim(candidates[index], targets))
