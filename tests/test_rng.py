"""fedddp.rng: randomness derived from (seed, purpose, path)."""

import random

import numpy as np
import pytest
import torch

from fedddp.rng import derive, generator, global_seed, numpy_generator


def test_derived_seed_is_the_same_on_every_machine_and_in_every_version():
    """A changed value would make old runs and their checkpoints impossible to repeat."""
    assert derive(0, "model") == 3211678333516522061
    assert derive(7, "batches", 3, 11) == 2052940016667282787


def test_every_argument_matters():
    arguments = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 1, 2), (0, "a", 2, 1), (0, "a", 12)]
    assert len({derive(*a) for a in arguments}) == len(arguments)
    assert all(0 <= derive(*a) < 2**63 for a in arguments)


@pytest.mark.parametrize("make", [generator, numpy_generator])
def test_streams_are_repeatable_and_apart(make):
    def draw(*arguments):
        stream = make(*arguments)
        return stream.random(4).tolist() if make is numpy_generator else torch.rand(4, generator=stream).tolist()

    first = draw(0, "x", 1)
    assert draw(0, "x", 1) == first
    assert draw(0, "x", 2) != first
    assert draw(1, "x", 1) != first


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(3, generator=generator(0, "x"))
    numpy_generator(0, "x").random(3)
    with global_seed(0, "x"):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_global_seed_seeds_inside_the_block_only():
    with global_seed(0, "x", 1):
        first = torch.rand(3)
    torch.rand(7)
    with global_seed(0, "x", 1):
        assert torch.equal(torch.rand(3), first)
    with global_seed(0, "x", 2):
        assert not torch.equal(torch.rand(3), first)


def test_global_seed_covers_numpy_and_python():
    def drawn():
        return np.random.random(), random.random(), float(torch.rand(1))

    with global_seed(0, "x", 1):
        first = drawn()
    between = drawn()
    with global_seed(0, "x", 1):
        assert drawn() == first
    assert drawn() != between
    with global_seed(0, "x", 2):
        assert all(one != other for one, other in zip(drawn(), first, strict=True))


def test_global_seed_draws_what_torch_draws_from_that_seed():
    """Bits of runs of before stay."""
    with global_seed(3, "model"):
        inside = torch.randn(4)
    assert torch.equal(inside, torch.randn(4, generator=generator(3, "model")))


def test_global_seed_restores_after_an_exception():
    before = torch.get_rng_state()

    def fails():
        with global_seed(0, "x"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(torch.get_rng_state(), before)
