"""fedddp.sampling: cohorts, who trains whom, blocks."""

from collections import Counter
from itertools import chain

import pytest
import torch

from fedddp.sampling import (
    PowerOfChoiceSampler,
    Punctual,
    Schedule,
    SizeSampler,
    UniformSampler,
    assign,
    at_home,
    blocks,
    home_rank,
)
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


SIZES = torch.tensor([7, 1, 0, 12, 5, 3, 12, 8])


def test_by_size_everybody_is_drawn_with_its_share_of_the_places():
    """4,000 draws of 4 of 48 examples' owners: 4 n_k / 48 of them, within 5 standard deviations; so plain means expect
    the mean over examples."""
    sampler = SizeSampler(SIZES, 4, seed=0)
    cohorts = [sampler.cohort(t).ids for t in range(4000)]
    assert all(len(ids) == 4 and list(ids) == sorted(set(ids)) for ids in cohorts)
    drawn = Counter(chain(*cohorts))
    for k, n in enumerate(SIZES.tolist()):
        p = 4 * n / 48
        assert abs(drawn[k] - 4000 * p) <= 5 * (4000 * p * (1 - p)) ** 0.5
    assert drawn[3] == drawn[6] == 4000
    assert drawn[2] == 0
    values = torch.randn(8, generator=torch.Generator().manual_seed(1)).double()
    means = sum(values[list(ids)].mean() for ids in cohorts) / 4000
    assert abs(means - (SIZES * values).sum() / 48) < 0.03


def test_a_cohort_by_size_is_a_function_of_seed_and_round():
    drawn = [SizeSampler(SIZES, 3, seed=0).cohort(t) for t in range(20)]
    assert [SizeSampler(SIZES, 3, seed=0).cohort(t) for t in range(20)] == drawn
    assert len({c.ids for c in drawn}) > 5
    assert [SizeSampler(SIZES, 3, seed=1).cohort(t) for t in range(20)] != drawn
    assert drawn[5].round == 5


@pytest.mark.parametrize(("sizes", "m"), [([9, 1, 1], 2), ([3, 2, 2], 3), ([0, 0, 4], 2), ([100, 1], 2)])
def test_who_would_be_drawn_twice_is_refused(sizes, m):
    with pytest.raises(ValueError, match=f"client {sizes.index(max(sizes))} has {max(sizes)} of all {sum(sizes)}"):
        SizeSampler(torch.tensor(sizes), m, seed=0)


def test_equal_sizes_may_all_take_part():
    assert SizeSampler(torch.tensor([5, 5, 5]), 3, seed=0).cohort(1).ids == (0, 1, 2)


def chosen_by(losses, size=3, candidates=6):
    of = dict(enumerate(losses))
    sampler = PowerOfChoiceSampler(SIZES, size, candidates, 0, lambda c, w: torch.tensor([of[k] for k in c.ids]) + w)
    drawn = sampler.cohort(4)
    return drawn, sampler.chosen(drawn, torch.zeros(1))


def test_power_of_choice_takes_the_candidates_with_the_highest_losses():
    losses = [0.3, 9.0, 8.0, 0.1, 0.9, 0.5, 0.4, 0.7]
    drawn, chosen = chosen_by(losses)
    assert len(drawn.ids) == 6
    assert 2 not in drawn.ids  # it has no examples
    assert set(chosen.ids) == set(sorted(drawn.ids, key=lambda k: -losses[k])[:3])
    assert list(chosen.ids) == sorted(chosen.ids)
    assert (chosen.round, chosen.population) == (4, 8)


def test_of_equal_losses_the_lower_client_and_nan_last():
    drawn, chosen = chosen_by([1.0] * 8)
    assert chosen.ids == drawn.ids[:3]
    drawn, chosen = chosen_by([float("nan")] * 7 + [-5.0], size=1, candidates=7)
    assert chosen.ids == (7,)
    drawn, chosen = chosen_by([1.0] * 6 + [float("inf"), 2.0], size=1, candidates=7)
    assert chosen.ids == (6,)


def test_candidates_are_drawn_by_their_share_of_the_examples():
    """One candidate of 3,000 draws each: n_k / 48, within 5 standard deviations."""
    sampler = PowerOfChoiceSampler(SIZES, 1, 1, 0, lambda c, w: w)
    drawn = Counter(sampler.cohort(t).ids[0] for t in range(3000))
    for k, n in enumerate(SIZES.tolist()):
        assert abs(drawn[k] - 3000 * n / 48) <= 5 * (3000 * n / 48) ** 0.5


@pytest.mark.parametrize("candidates", [2, 8, 100, -1])
def test_candidates_are_between_the_cohort_and_those_with_examples(candidates):
    with pytest.raises(ValueError, match=f"candidates={candidates}: a round has 3 clients, and 7 have examples"):
        PowerOfChoiceSampler(SIZES, 3, candidates, 0, lambda c, w: w)


def test_who_is_late_is_left_out():
    sampler = Punctual(UniformSampler(9, 6, seed=0), lambda k, t: (k + t) % 2 == 0)
    cohort = sampler.cohort(3)
    assert cohort == UniformSampler(9, 6, seed=0).cohort(3)
    assert sampler.chosen(cohort, torch.zeros(1)).ids == tuple(k for k in cohort.ids if k % 2 == 0)


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


@pytest.mark.parametrize(("drawn", "expected"), [((), (1, 4, 7)), ((4,), (4, 1, 7)), ((1, 4, 6, 7, 10), (1, 4, 7, 10))])
def test_a_rank_of_equal_work_fills_up_with_its_own_clients_and_trains_all_that_are_drawn(drawn, expected):
    schedule = Schedule(torch.full((12,), 5), lambda sizes: sizes, rank=1, world_size=3, bound=True, least=3)
    assert schedule.mine(Cohort(0, drawn, 12)) == expected
