"""What runs released, added up: over runs, over deltas, and as zCDP."""

import math

import numpy as np
import pytest
import torch

from fedddp.privacy import ClientBudget, ExampleBudget, Limits, NoBudget, compose, compose_runs, epsilon
from fedddp.privacy.accounting import WHOLE, rdp
from fedddp.privacy.composition import DELTAS, covered, curve, merged, zcdp
from fedddp.types import Cohort

pytest.importorskip("opacus")

DELTA = 1e-5
RATES, STEPS = torch.tensor([0.05, 0.01, 0.2], dtype=torch.float64), torch.tensor([20, 100, 5])


def converted(divergences):
    """Epsilon of Renyi divergences by order, converted as in Balle et al. 2020, Theorem 21: no code of opacus."""
    return min(
        d + math.log1p(-1 / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
        for order, d in divergences.items()
    )


def test_runs_with_one_segment_each_compose_as_one_history():
    runs = [((1.0, 0.1, 50),), ((2.0, 1.0, 3),), ((1.0, 0.1, 50),)]
    for accountant in ("prv", "rdp"):
        history = [segment for (segment,) in runs]
        assert compose_runs(runs, DELTA, accountant) == compose(history, DELTA, accountant)
    assert compose_runs(runs, DELTA) == pytest.approx(compose([(1.0, 0.1, 100), (2.0, 1.0, 3)], DELTA), rel=1e-12)


def test_runs_with_several_segments_cost_the_largest_divergence_of_each_at_every_order():
    """A client with a large rate and few steps, another with a small rate and many: either may own the example."""
    runs = [((1.0, 0.2, 5), (1.0, 0.01, 2000)), ((2.0, 0.3, 2), (2.0, 0.02, 900))]
    largest = {a: sum(max(rdp(s, q, n, a) for s, q, n in run) for run in runs) for a in WHOLE}
    found = compose_runs(runs, DELTA, "rdp")
    assert found <= converted(largest) + 1e-9
    assert found < compose([(1.0, 0.2, 2000), (2.0, 0.3, 900)], DELTA, "rdp") - 1  # not the largest of everything
    choices = [compose([a, b], DELTA, "rdp") for a in runs[0] for b in runs[1]]
    assert found >= max(choices) - 1e-9  # whoever owned the example in each run


def test_nothing_costs_nothing_and_no_noise_has_no_bound():
    assert compose_runs([], DELTA) == compose_runs([(), ((1.0, 0.5, 0),)], DELTA) == 0
    assert compose_runs([((1.0, 0.5, 1),), ((0.0, 0.5, 1),)], DELTA) == math.inf


def test_one_segment_covers_another_that_costs_no_more():
    assert covered((1.0, 0.5, 3), [(2.0, 1.0, 9), (1.0, 0.5, 3)])
    assert not any(covered(s, [(1.0, 0.5, 3)]) for s in ((0.9, 0.5, 3), (1.0, 0.6, 3), (1.0, 0.5, 4)))
    assert merged(((1.0, 0.5, 3), (1.0, 0.1, 9)), ((1.0, 0.5, 4),)) == ((1.0, 0.1, 9), (1.0, 0.5, 4))


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_a_curve_has_the_guarantees_epsilon_at_its_delta_and_falls_with_delta(accountant):
    budget = ExampleBudget(RATES, STEPS, Limits(1.1, DELTA, accountant=accountant))
    for t in range(3):
        budget.spend(Cohort(t, (0, 1, 2), 3))
    found = curve(budget.composition(), accountant)
    assert [float(delta) for delta in found] == list(DELTAS)
    assert found["1e-05"] == budget.epsilon
    assert list(found.values()) == sorted(found.values())
    assert curve(()) == dict.fromkeys(found, 0.0)


def test_the_curve_of_a_gaussian_without_sampling_is_the_closed_form():
    """delta = Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu) with mu = sqrt(k) / sigma (Balle and Wang 2018)."""
    mu, phi = math.sqrt(7) / 4.0, lambda x: math.erfc(-x / math.sqrt(2)) / 2
    for delta, e in curve(((4.0, 1.0, 7),)).items():
        assert phi(mu / 2 - e / mu) - math.exp(e) * phi(-mu / 2 - e / mu) == pytest.approx(float(delta), rel=1e-6)


def test_zcdp_bounds_the_renyi_divergence_without_sampling_and_is_not_given_with_it():
    released = ((1.5, 1.0, 3), (1.5, 1.0, 8))
    rho = zcdp(released)
    assert rho == 8 / (2 * 1.5**2)
    assert [rdp(1.5, 1.0, 8, a) / a for a in (2, 7, 60)] == pytest.approx([rho] * 3)
    assert zcdp(((1.5, 0.99, 3),)) is None
    assert zcdp(((0.0, 1.0, 3),)) is None
    assert zcdp(()) == zcdp(((1.5, 1.0, 0),)) == 0.0
    assert rdp(1.0, 0.5, 1, 500) / 500 == pytest.approx(1 / 2, rel=0.01)  # why: with sampling rho is the same
    assert rdp(1.0, 0.5, 1, 2) / 2 < 0.2  # and says nothing of small orders


def test_a_budget_tells_what_it_released_about_any_of_its_units_or_some():
    budget = ExampleBudget(RATES, STEPS, Limits(1.1, DELTA))
    for t, ids in enumerate([(0, 1), (1,), (1, 2)]):
        budget.spend(Cohort(t, ids, 3))
    assert budget.composition() == ((1.1, 0.2, 5), (1.1, 0.05, 20), (1.1, 0.01, 300))
    assert budget.composition([1]) == ((1.1, 0.01, 300),)
    assert budget.composition([0], more=2) == budget.composition([0], lost=2) == ((1.1, 0.05, 60),)
    assert budget.composition([0, 2], more=torch.tensor([1, 5, 0])) == ((1.1, 0.2, 5), (1.1, 0.05, 40))
    assert budget.composition([]) == ()
    client = ClientBudget(0.25, Limits(2.0, DELTA))
    client.spend(Cohort(0, (1,), 4))
    assert (
        client.composition([3], more=4) == client.composition(more=3, lost=1) == ((2.0, 0.25, 5),)
    )  # whoever was drawn
    assert NoBudget().composition() == ()
    assert epsilon(2.0, 0.25, 1, DELTA) == client.epsilon == compose_runs([client.composition()], DELTA)


def test_a_segment_in_a_record_is_plain_numbers():
    for segment in ExampleBudget(RATES, STEPS, Limits(1.1, DELTA)).composition(more=1):
        assert [type(x) for x in segment] == [float, float, int]
        assert not any(isinstance(x, np.generic) for x in segment)
