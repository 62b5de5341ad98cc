"""Randomness for privacy: the right distributions, from AES and nothing else."""

import random

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedddp.privacy import Randomness

N = 200_000


def stream(*path):
    return Randomness.seeded(7, "test", *path)


def kolmogorov(x, cdf):
    """sqrt(n) times the largest distance from ``cdf``; above 1.95 once in 1000 samples."""
    x = x.double().sort().values
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    expected = cdf(x)
    return float(torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max())) * len(x) ** 0.5


def test_words_are_the_key_stream_of_aes_256_in_counter_mode():
    """Also where a draw is longer than the piece encrypted at once, and where draws do not end with a block."""
    key = bytes(range(32))
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    expected = np.frombuffer(encryptor.update(bytes(8 * 20_004)), dtype="<i8")
    drawn = Randomness(key)
    assert torch.cat([drawn.int64(n) for n in (1, 2, 0, 20_001)]).tolist() == expected.tolist()


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        Randomness(bytes(16))


def test_no_two_draws_are_alike():
    drawn = stream()
    words = torch.cat([drawn.int64(1000) for _ in range(10)])
    assert len(words.unique()) == 10_000


def test_secrets_differ_and_seeds_repeat():
    assert not torch.equal(Randomness.secret().int64(4), Randomness.secret().int64(4))
    assert not Randomness.secret().predictable
    assert torch.equal(stream(1, 2).int64(4), stream(1, 2).int64(4))
    assert stream().predictable
    assert stream().child("x").predictable


def test_other_arguments_give_other_streams():
    """Also where their texts, written side by side, would be alike; and the seeds that torch cannot tell apart."""
    seeds = [Randomness.seeded(s, "test") for s in (5, 5 + 2**32, -5)]
    paths = [stream(), stream(1), stream(1, 2), stream(12), Randomness.seeded(7, "test/1"), Randomness.seeded(7, "1:t")]
    root = stream()
    children = [root.child("a"), root.child("a", 1), root.child("a/1"), root.child("b"), root.child("a", 1).child("b")]
    first = [int(s.int64(1)) for s in [*seeds, *paths, *children]]
    assert len(set(first)) == len(first)


def test_a_child_does_not_depend_on_what_was_drawn():
    fresh, used = stream(), stream()
    used.int64(100)
    assert torch.equal(fresh.child("noise", 3).int64(5), used.child("noise", 3).int64(5))


def test_words_are_uniform():
    counts = np.bincount(np.frombuffer(stream().int64(N).numpy().tobytes(), dtype=np.uint8), minlength=256)
    chi_square = ((counts - 8 * N / 256) ** 2 / (8 * N / 256)).sum()
    assert 170 < chi_square < 360  # 255 degrees of freedom, 5 standard deviations


def test_uniform_numbers_never_reach_the_ends():
    x = stream().uniform(N)
    assert x.dtype == torch.float64
    assert 0 < float(x.min()) < float(x.max()) < 1
    assert kolmogorov(x, lambda u: u) < 1.95

    class Extreme(Randomness):
        def int64(self, n):
            return torch.tensor([0, -1, 2**63 - 1, -(2**63)])[:n]

    ends = Extreme(bytes(32)).uniform(4).tolist()
    assert ends == [2.0**-53, 1 - 2.0**-53, 1 - 2.0**-53, 2.0**-53]


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 1.0])
def test_bernoulli_has_its_probability(p):
    drawn = stream().bernoulli(N, p)
    assert drawn.dtype == torch.bool
    assert abs(float(drawn.double().mean()) - p) <= 4 * (p * (1 - p) / N) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype):
    x = stream().normal(N + 1, dtype)
    assert (x.dtype, x.shape) == (dtype, (N + 1,))
    assert kolmogorov(x, torch.special.ndtr) < 1.95
    assert abs(float(x.double().square().mean()) - 1) < 4 * (2 / N) ** 0.5
    assert 4.0 < float(x.abs().max()) < 8.6


def test_the_halves_of_a_normal_draw_are_independent():
    """The transform makes pairs: neither they nor their squares are correlated."""
    a, b = stream().normal(N, torch.float64).view(2, -1)
    for x, y in ((a, b), (a.square() - 1, b.square() - 1)):
        assert abs(float((x * y).mean() / (x.std() * y.std()))) < 4 * (2 / N) ** 0.5


def test_no_global_generator_is_read_or_changed():
    def states():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state(legacy=False)["state"]["key"].tobytes(),
            random.getstate(),
        )

    before = states()
    first = stream().normal(10)
    torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(0)
    assert torch.equal(stream().normal(10), first)
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    random.setstate(before[2])
    changed = states()
    drawn = Randomness.secret()
    drawn.int64(10), drawn.uniform(10), drawn.normal(10), drawn.bernoulli(10, 0.5), drawn.child("x").int64(2)
    assert states() == changed
