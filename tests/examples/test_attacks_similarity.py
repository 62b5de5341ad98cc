"""PSNR, SSIM and their baselines against figures worked out by hand."""

import math

import pytest
import torch

from examples.privacy.attacks.similarity import CEILING, Baselines, closest, psnr, ssim


def pictures(n, seed=0, side=16):
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed))


def one_window(a, b):
    """SSIM of 11 x 11 pictures as Wang et al. 2004 write it: one window, its 121 weights spelled out."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    cells = [(weights[i][j] / total, float(a[i, j]), float(b[i, j])) for i in range(11) for j in range(11)]
    ma, mb = sum(w * x for w, x, _ in cells), sum(w * y for w, _, y in cells)
    va, vb = sum(w * (x - ma) ** 2 for w, x, _ in cells), sum(w * (y - mb) ** 2 for w, _, y in cells)
    cov = sum(w * (x - ma) * (y - mb) for w, x, y in cells)
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_psnr_of_a_known_error():
    black = torch.zeros(28, 28)
    assert psnr(black, black + 0.1) == pytest.approx(20.0, abs=1e-4)
    one_pixel = black.clone()
    one_pixel[3, 4] = 1.0
    assert psnr(black, one_pixel) == pytest.approx(10 * math.log10(784), abs=1e-4)
    assert psnr(black, black) == CEILING


def test_psnr_and_ssim_take_several_pictures():
    a, b = pictures(3), pictures(3, seed=1)
    assert psnr(a, b).tolist() == [float(psnr(x, y)) for x, y in zip(a, b, strict=True)]
    assert ssim(a.unsqueeze(0), b.unsqueeze(1)).shape == (3, 3)
    assert ssim(a, b[0])[2] == pytest.approx(float(ssim(a[2], b[0])), abs=1e-6)


def test_ssim_is_wangs():
    a, b = pictures(2, side=11)
    assert ssim(a, b) == pytest.approx(one_window(a, b), abs=1e-6)
    assert ssim(a, 0.8 * a + 0.1) == pytest.approx(one_window(a, 0.8 * a + 0.1), abs=1e-6)
    assert ssim(a, 1 - a) < -0.5


def test_ssim_of_flat_pictures_compares_their_brightness():
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(torch.full((20, 20), 0.2), torch.full((20, 20), 0.6)) == pytest.approx(expected, abs=1e-6)
    assert ssim(pictures(1), pictures(1)) == pytest.approx(1.0, abs=1e-6)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.zeros(8, 28), torch.zeros(8, 28))


def test_baselines():
    """Two thirds of the others are 0.5 everywhere, one third 0.2: their mean is 0.4, the best guess 0.2."""
    targets = torch.zeros(5, 12, 12)
    others = torch.tensor([0.5, 0.2, 0.5]).view(-1, 1, 1).expand(-1, 12, 12)
    found = Baselines.of(targets, others)
    assert found.mean_image[0] == pytest.approx(-20 * math.log10(0.4), abs=1e-3)
    assert found.another[0] == pytest.approx(-20 * math.log10(0.2), abs=1e-3)
    assert found.another[1] == pytest.approx(1e-4 / (0.04 + 1e-4), abs=1e-4)


def test_closest_finds_each_target_among_the_candidates():
    targets = pictures(3)
    candidates = torch.cat([pictures(2, seed=1), targets.flip(0) * 0.99])
    found = closest(candidates, targets)
    assert found.index.tolist() == [4, 3, 2]
    assert (found.psnr > 40).all()
    assert (found.ssim > 0.99).all()
    assert (closest(candidates, pictures(3, seed=2)).psnr < 15).all()
    with pytest.raises(ValueError, match="no candidates"):
        closest(candidates[:0], targets)
