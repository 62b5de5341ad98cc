"""fedddp.sampling: cohorts, homes, blocks."""

from collections import Counter
from itertools import chain

import pytest

from fedddp.sampling import UniformSampler, assign, blocks, home_rank
from fedddp.types import Cohort


def test_a_cohort_is_distinct_clients_in_ascending_order():
    cohort = UniformSampler(population=50, size=8, seed=0).cohort(3)
    assert (cohort.round, cohort.population, len(cohort.ids)) == (3, 50, 8)
    assert list(cohort.ids) == sorted(set(cohort.ids))
    assert 0 <= cohort.ids[0] <= cohort.ids[-1] < 50
    assert all(type(k) is int for k in cohort.ids)


def test_a_cohort_is_a_function_of_seed_and_round():
    sampler = UniformSampler(50, 8, seed=0)
    drawn = [sampler.cohort(t).ids for t in range(20)]
    assert [sampler.cohort(t).ids for t in reversed(range(20))] == drawn[::-1]
    assert len(set(drawn)) == 20
    assert UniformSampler(50, 8, seed=1).cohort(0).ids != drawn[0]


def test_everybody_takes_part_when_the_cohort_is_the_population():
    assert UniformSampler(5, 5, seed=0).cohort(2) == Cohort(2, (0, 1, 2, 3, 4), 5)


def test_clients_are_drawn_equally_often():
    """2,000 draws of 5 out of 20: each expects 500 with standard deviation 19; 5 of them are allowed."""
    sampler = UniformSampler(20, 5, seed=0)
    drawn = Counter(k for t in range(2000) for k in sampler.cohort(t).ids)
    assert all(abs(drawn[k] - 500) < 97 for k in range(20))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_cohort_without_overlap(world_size):
    cohort = UniformSampler(20, 9, seed=0).cohort(0)
    mine = [assign(cohort, rank, world_size) for rank in range(world_size)]
    assert sorted(chain(*mine)) == list(cohort.ids)
    assert all(home_rank(k, world_size) == rank for rank, ids in enumerate(mine) for k in ids)
    assert all(ids == sorted(ids) for ids in mine)


@pytest.mark.parametrize(
    ("ids", "width", "expected"),
    [
        ([4, 6, 9], 1, [(4,), (6,), (9,)]),
        ([4, 6, 9], 2, [(4, 6), (9,)]),
        ([4, 6], 5, [(4, 6)]),
        ([], 2, []),
    ],
)
def test_blocks_are_at_most_width_clients(ids, width, expected):
    assert list(blocks(ids, width)) == expected
