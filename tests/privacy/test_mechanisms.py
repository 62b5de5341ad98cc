"""Correlated noise: what it is a post-processing of, how much of it there is, whom it covers, and what it costs."""

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from fedddp.checkpoints.spend_file import SpendFile
from fedddp.privacy import CyclicBudget, CyclicSampler, Limits, calibrate
from fedddp.privacy.mechanisms import MECHANISMS, MOST_BANDS, Banded, Tree
from fedddp.types import Cohort
from tests.helpers.correlated import noise_matrix

pytest.importorskip("opacus")

MECHANISM = [Banded(1), Banded(3), Banded(4), Tree(4), Tree(7), Tree(8)]


def strategy(mechanism, releases):
    """C [draws, releases]: what each draw hides, from the papers and not from the code; columns of norm 1."""
    if isinstance(mechanism, Banded):
        c = [math.comb(2 * i, i) / 4**i for i in range(mechanism.bands)]  # (1 - x)^(-1/2)
        rows = [[c[t - s] if 0 <= t - s < len(c) else 0.0 for s in range(releases)] for t in range(releases)]
        return np.array(rows) / np.linalg.norm(c)
    rows, leaves = [], 1 << (mechanism.separation.bit_length() - 1)
    for t in range(1, releases + 1):
        for level in range(mechanism.separation.bit_length()):
            if (1 + (t - 1) % leaves) % 2**level == 0:  # nodes whose last leaf is t, the smallest first
                rows.append([float(t - 2**level < s <= t) for s in range(1, releases + 1)])
    return np.array(rows) / math.sqrt(mechanism.separation.bit_length())


def separation_of(mechanism):
    return getattr(mechanism, "separation", None) or mechanism.bands


@pytest.mark.parametrize("mechanism", MECHANISM, ids=str)
def test_releases_are_a_post_processing_of_cx_plus_independent_noise(mechanism):
    """B (C x + z) = x + B z for every x: B C = I, and B is lower triangular in time."""
    releases = 3 * separation_of(mechanism) + 2
    b, c = noise_matrix(mechanism, releases), strategy(mechanism, releases)
    assert b.shape == c.shape[::-1]
    assert np.allclose(b @ c, np.eye(releases), atol=1e-12)
    assert np.allclose((c**2).sum(0)[: -separation_of(mechanism)], 1)


def patterns(releases, separation):
    """Every set of releases of which no two are less than ``separation`` apart."""
    for k in range(1, -(-releases // separation) + 1):
        for who in combinations(range(releases), k):
            if all(b - a >= separation for a, b in pairwise(who)):
                yield who


@pytest.mark.parametrize("restart", [None, 1, 4])
@pytest.mark.parametrize("mechanism", [Banded(1), Banded(2), Banded(3), Tree(3), Tree(4)], ids=str)
def test_no_pattern_of_participations_changes_cx_by_more_than_the_root_of_their_number(mechanism, restart):
    """By brute force, over signs too, and where a run was resumed and began with new noise."""
    releases, b = 8, separation_of(mechanism)
    c = strategy(mechanism, releases)
    if restart:
        before, after = strategy(mechanism, restart), strategy(mechanism, releases - restart)
        c = np.block([[before, np.zeros((len(before), after.shape[1]))], [np.zeros((len(after), restart)), after]])
    worst = 0.0
    for who in patterns(releases, b):
        for signs in product((-1.0, 1.0), repeat=len(who)):
            worst = max(worst, float(np.linalg.norm(c[:, who] @ np.array(signs))))
    assert worst <= math.sqrt(-(-releases // b)) + 1e-12
    if not restart:
        assert worst > 0.85 * math.sqrt(releases // b)  # and the bound is not far from what happens
        if b > 1:  # participations that are closer break it: the separation matters
            assert np.linalg.norm(c[:, [0, 1]].sum(1)) > 1.05 * math.sqrt(2)


@pytest.mark.parametrize("mechanism", [*MECHANISM, Banded(32), Tree(31), Tree(64)], ids=str)
def test_the_bound_of_a_releases_noise_holds(mechanism):
    std = np.linalg.norm(noise_matrix(mechanism, 3 * separation_of(mechanism) + 40), axis=1)
    assert std.max() <= mechanism.largest_std * (1 + 1e-9)
    if isinstance(mechanism, Banded):
        assert std.max() == pytest.approx(mechanism.largest_std, rel=1e-3)


@pytest.mark.parametrize(("bands", "rms", "largest"), [(1, 7.106, 10.0), (4, 4.102, 5.677), (10, 3.039, 4.047)])
def test_the_error_of_sums_over_100_releases(bands, rms, largest):
    """In units of sigma clip; one band is the root of the number of releases."""
    sums = np.linalg.norm(np.cumsum(noise_matrix(Banded(bands), 100), axis=0), axis=1)
    assert np.sqrt((sums**2).mean()) == pytest.approx(rms, abs=1e-3)
    assert sums.max() == pytest.approx(largest, abs=1e-3)


def test_a_trees_sums_have_the_variance_of_the_nodes_that_make_them_up():
    """Of a node with 2^h leaves: 1 / (2 - 2^-h) (Honaker 2015), times the 4 levels of a tree of 8."""
    sums = np.cumsum(noise_matrix(Tree(10), 16), axis=0)
    node = [4 / (2 - 2.0**-h) for h in range(4)]
    expected = [sum(node[h] for h in range(4) if t >> h & 1) for t in range(1, 9)]
    assert (sums**2).sum(1)[:8] == pytest.approx(expected)
    assert (sums**2).sum(1)[8:] == pytest.approx([node[3] + e for e in expected])


def test_the_number_of_bands_that_is_chosen():
    assert MECHANISMS["banded_mf"](10, 0) == Banded(10)
    assert MECHANISMS["banded_mf"](500, 0) == Banded(MOST_BANDS)
    assert MECHANISMS["banded_mf"](500, 50) == Banded(50)


@pytest.mark.parametrize(("population", "size"), [(12, 3), (13, 3), (10, 4), (7, 7), (5, 1)])
def test_cohorts_are_of_one_size_and_a_client_comes_back_no_sooner_than_the_separation(population, size):
    released = 0
    sampler = CyclicSampler(population, size, 0, lambda: released)
    seen: dict[int, list[int]] = {k: [] for k in range(population)}
    for released in range(5 * population):
        ids = sampler.cohort(3).ids  # whatever the round
        assert list(ids) == sorted(set(ids))
        assert len(ids) == size
        for k in ids:
            seen[k].append(released)
    gaps = [b - a for turns in seen.values() for a, b in pairwise(turns)]
    assert min(gaps) == population // size
    assert {len(turns) for turns in seen.values()} == {5 * size}
    assert CyclicSampler(50, 9, 1, lambda: 0).cohort(0).ids != CyclicSampler(50, 9, 2, lambda: 0).cohort(0).ids


def delta_of(mu, e):
    phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    return phi(mu / 2 - e / mu) - math.exp(e) * phi(-mu / 2 - e / mu)


def test_epsilon_is_the_closed_form_of_the_participations_so_far_lost_releases_among_them(tmp_path):
    file = SpendFile(tmp_path / "spent.jsonl")
    budget = CyclicBudget(4, Limits(2.0, 1e-5, None, "prv", file))
    for t in range(9):
        budget.spend(Cohort(t, (0,), 8))
        k = -(-(t + 1) // 4)
        assert delta_of(math.sqrt(k) / 2.0, budget.epsilon) == pytest.approx(1e-5, rel=1e-6)
        assert budget.composition() == ((2.0, 1.0, k),)  # for a party's account over runs
    assert "no sampling assumed" in budget.guarantee.text()
    again = CyclicBudget(4, Limits(2.0, 1e-5, None, "prv", file))
    again.load(again.recovered({}))  # without a checkpoint, from the file alone
    assert (again.released, again.epsilon) == (9, budget.epsilon)


def test_a_target_is_met_until_a_client_takes_part_once_more():
    sigma = calibrate(3.0, 1.0, 5, 1e-5)
    budget = CyclicBudget(4, Limits(sigma, 1e-5, 3.0))
    rounds = 0
    while budget.allows(Cohort(rounds, (), 8)):
        budget.spend(Cohort(rounds, (), 8))
        rounds += 1
    assert rounds == 20
    assert 2.99 < budget.epsilon <= 3.0
