"""fedddp.sampling: cohorts, who trains whom, blocks."""

from collections import Counter
from itertools import chain

import pytest
import torch

from fedddp.sampling import UniformSampler, assign, at_home, blocks, home_rank
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


def loads(cohort, steps, mine):
    """Steps a rank."""
    work = dict(zip(cohort.ids, steps, strict=True))
    return [sum(work[k] for k in ids) for ids in mine]


def unequal(m, seed=0):
    """A cohort of ``m`` clients and their steps, few with many."""
    cohort = UniformSampler(3 * m, m, seed=seed).cohort(0)
    return cohort, (torch.rand(m, generator=torch.Generator().manual_seed(seed)).pow(4) * 300).long().tolist()


@pytest.mark.parametrize("divide", [assign, at_home])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_cohort_without_overlap(world_size, divide):
    cohort, steps = unequal(20)
    mine = divide(cohort, steps, world_size)
    assert len(mine) == world_size
    assert sorted(chain(*mine)) == list(cohort.ids)
    assert mine == divide(cohort, torch.tensor(steps), world_size)
    order = sorted(cohort.ids, key=lambda k: (-steps[cohort.ids.index(k)], k))
    assert all(list(ids) == [k for k in order if k in ids] for ids in mine)
    assert all(type(ids) is tuple and all(type(k) is int for k in ids) for ids in mine)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_at_home_each_rank_trains_those_who_live_there(world_size):
    mine = at_home(*unequal(20), world_size)
    assert all(home_rank(k, world_size) == rank for rank, ids in enumerate(mine) for k in ids)


def test_the_longest_goes_to_the_rank_with_the_least_to_do():
    """7 and 6 to one rank each, 5 beside 6, 4 beside 7, 3 to the lower of two with 11; then ties by id."""
    cohort = Cohort(0, (2, 3, 5, 7, 8), 10)
    assert assign(cohort, [3, 7, 4, 6, 5], 2) == [(3, 5, 2), (7, 8)]
    assert assign(cohort, [1, 1, 1, 1, 1], 2) == [(2, 5, 8), (3, 7)]
    assert assign(cohort, [1, 1, 1, 1, 1], 7) == [(2,), (3,), (5,), (7,), (8,), (), ()]
    assert assign(Cohort(0, (), 10), [], 2) == [(), ()]


@pytest.mark.parametrize(("world_size", "load"), [(2, 0), (4, 0), (4, 200), (4, 10**6), (16, 50)])
def test_no_rank_has_much_more_to_do_than_the_mean(world_size, load):
    """LPT ends at most one client above the mean, and that one was placed when everyone else had as much."""
    cohort, steps = unequal(400)
    total = loads(cohort, steps, assign(cohort, steps, world_size, load=load))
    total[0] += load
    others = total[1:] if load > sum(total[1:]) else total
    assert max(others) - min(others) <= max(steps)
    assert max(others) <= 1.02 * sum(others) / len(others) + 1
    if load == 10**6:
        assert total[0] == load


def test_balance_beats_homes_where_work_is_unequal():
    cohort, steps = unequal(30, seed=1)
    balanced, at_homes = (loads(cohort, steps, divide(cohort, steps, 4)) for divide in (assign, at_home))
    assert max(balanced) < 0.9 * max(at_homes)


@pytest.mark.parametrize("wrong", [[1, 2], [1, 2, 3, 4]])
def test_steps_are_one_figure_a_client_of_the_cohort(wrong):
    with pytest.raises(ValueError, match="zip"):
        assign(Cohort(0, (1, 2, 3), 5), wrong, 2)


@pytest.mark.parametrize(
    ("ids", "width", "expected"),
    [
        ([4, 6, 9], 1, [(4,), (6,), (9,)]),
        ([4, 6, 9], 2, [(4,), (6, 9)]),
        ([4, 6], 5, [(4, 6)]),
        ([], 2, []),
    ],
)
def test_blocks_are_at_most_width_clients(ids, width, expected):
    assert list(blocks(ids, width)) == expected


@pytest.mark.parametrize(("count", "width"), [(1, 1), (10, 3), (10, 5), (11, 5), (100, 33), (64, 64), (65, 64)])
def test_blocks_are_few_and_alike(count, width):
    runs = list(blocks(range(count), width))
    assert list(chain(*runs)) == list(range(count))
    assert len(runs) == -(-count // width)
    lengths = {len(run) for run in runs}
    assert max(lengths) <= width
    assert max(lengths) - min(lengths) <= 1
