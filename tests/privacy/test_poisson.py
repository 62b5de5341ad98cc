"""Poisson cohorts: the right rate, independent, the same whenever asked for, and a loop that survives an empty one."""

import math
from dataclasses import replace

import pytest
import torch

from fedddp.federation import federate
from fedddp.privacy import PoissonSampler, Randomness, rarely_more
from fedddp.privacy.poisson import RARELY
from tests.helpers.support import Recorder, assemble, few_digits

SEEDED = Randomness.seeded(3, "cohorts")


def test_a_cohort_is_the_same_whenever_it_is_asked_for():
    sampler = PoissonSampler(50, 0.3, SEEDED)
    first, other = sampler.cohort(4), sampler.cohort(5)
    assert sampler.cohort(4) == first == PoissonSampler(50, 0.3, SEEDED).cohort(4)
    assert first.ids != other.ids
    assert first.round == 4
    assert first.population == 50
    assert list(first.ids) == sorted(set(first.ids))


def test_every_client_is_drawn_at_the_rate_and_independently_of_the_others():
    """Frequencies within 4 standard deviations of q; sizes vary as a binomial's: fixed-size cohorts would not."""
    n, q, rounds = 40, 0.2, 2000
    drawn = torch.zeros(rounds, n, dtype=torch.float64)
    sampler = PoissonSampler(n, q, SEEDED)
    for t in range(rounds):
        drawn[t, list(sampler.cohort(t).ids)] = 1
    assert ((drawn.mean(0) - q).abs() < 4 * (q * (1 - q) / rounds) ** 0.5).all()
    assert abs(float(drawn.mean()) - q) < 3 * (q * (1 - q) / drawn.numel()) ** 0.5
    sizes = drawn.sum(1)
    assert float(sizes.var()) == pytest.approx(n * q * (1 - q), rel=0.15)
    together = (drawn.T @ drawn / rounds)[~torch.eye(n, dtype=torch.bool)]
    assert ((together - q * q).abs() < 5 * q / rounds**0.5).all()


def test_a_rank_draws_its_own_clients_only():
    sampler = PoissonSampler(10, 1.0, Randomness.secret(), [7, 1, 4])
    assert sampler.cohort(0).ids == (1, 4, 7)
    assert sampler.cohort(0).population == 10
    few = PoissonSampler(10, 0.5, Randomness.secret(), [7, 1, 4])
    assert {k for t in range(50) for k in few.cohort(t).ids} == {1, 4, 7}


@pytest.mark.parametrize(("clients", "q"), [(0, 0.5), (3, 0.5), (4, 1.0), (20, 0.2), (1000, 0.01)])
def test_more_are_drawn_rarely(clients, q):
    """The tail of the binomial, summed as it stands; one client less would be too few."""

    def more(than):
        return sum(math.comb(clients, k) * q**k * (1 - q) ** (clients - k) for k in range(than + 1, clients + 1))

    most = rarely_more(clients, q)
    assert more(most) <= RARELY
    assert most == 0 or more(most - 1) > RARELY


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1])
def test_a_rate_that_is_none_is_refused(q):
    with pytest.raises(ValueError, match="probability"):
        PoissonSampler(10, q, SEEDED)


@pytest.mark.parametrize("exact", [False, True])
def test_a_round_without_clients_changes_nothing_and_the_run_goes_on(tmp_path, exact):
    sink = Recorder()
    sections = {"run": {"rounds": 12}, "aggregation": {"sum": "exact" if exact else "fast"}}
    sections |= {"client": {"optimizer": {"lr": 0.1}}, "model": {"name": "mlp", "hidden": 8}}
    f, server = assemble(tmp_path, few_digits(12), (3, 4, 5), sinks=(sink,), **sections)
    sampler = PoissonSampler(3, 0.25, SEEDED)
    sizes = [len(sampler.cohort(t).ids) for t in range(12)]
    assert 0 in sizes
    assert max(sizes) > 0
    after = federate(replace(f, sampler=sampler), server)
    assert after.round == 12
    assert after.w.isfinite().all()
    assert not after.w.equal(server.w)
    assert [record.metrics["participants"] for record in sink.records] == sizes
