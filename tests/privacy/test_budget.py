"""The budget: counts that survive a kill, epsilon from counts alone, and a run that stops in time."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedddp.checkpoints.spend_file import SpendFile
from fedddp.federation import federate
from fedddp.privacy import Budget, ClientBudget, ExampleBudget, Limits, NoBudget, epsilon
from fedddp.privacy.budget import ALIKE, undominated, worst
from fedddp.types import Cohort
from tests.helpers.support import Recorder, assemble, few_digits

pytest.importorskip("opacus")

DELTA = 1e-5
RATES, STEPS = torch.tensor([0.05, 0.01, 0.2], dtype=torch.float64), torch.tensor([20, 100, 5])


def cohort(t, ids=(0, 1, 2)):
    return Cohort(t, tuple(ids), 3)


def examples(**more):
    return ExampleBudget(RATES, STEPS, Limits(1.1, DELTA, **{"accountant": "rdp", **more}))


def spent(budget, rounds, start=0):
    for t in range(start, start + rounds):
        budget.spend(cohort(t))
    return budget


def rounds_until_refused(budget):
    t = 0
    while budget.allows(cohort(t)):
        budget.spend(cohort(t))
        t += 1
    return t


def gaussian_delta(mu, e):
    """Of the Gaussian mechanism with sensitivity / sigma = mu (Balle and Wang 2018, Theorem 8)."""
    phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    return phi(mu / 2 - e / mu) - math.exp(e) * phi(-mu / 2 - e / mu)


def renyi_epsilons(q, sigma):
    """Of 1, 2, ... steps, by numeric integration and many orders: no code in common with the accountants."""
    x = np.linspace(-15 * sigma, 30 * sigma, 4001)
    ratio = np.log1p(-q) + np.logaddexp(0, math.log(q / (1 - q)) + (2 * x - 1) / (2 * sigma**2))
    log_density = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    orders = np.arange(1.2, 14, 0.02)
    moments = [np.trapezoid(np.exp(log_density + order * ratio), x) for order in orders]
    divergences = np.log(moments) / (orders - 1)
    tails = np.log1p(-1 / orders) - (math.log(DELTA) + np.log(orders)) / (orders - 1)
    return [float((steps * divergences + tails).min()) for steps in range(1, 100)]


def test_the_run_stops_before_the_round_that_would_break_the_target_without_sampling():
    """The closed form's delta at the target: at most DELTA after the last round, above it one round later."""
    sigma, target = 20.0, 1.0
    allowed = next(t for t in range(1, 1000) if gaussian_delta(math.sqrt(t) / sigma, target) > DELTA) - 1
    assert 20 < allowed < 40
    assert rounds_until_refused(ClientBudget(1.0, Limits(sigma, DELTA, target))) == allowed


def test_the_run_stops_before_the_round_that_would_break_the_target_with_sampling():
    q, sigma, target = 0.1, 1.0, 4.0
    allowed = sum(e <= target for e in renyi_epsilons(q, sigma))
    assert 15 < allowed < 60
    budget = ClientBudget(q, Limits(sigma, DELTA, target, "rdp"))
    assert rounds_until_refused(budget) == allowed
    assert budget.epsilon <= target


def test_the_loop_itself_stops_there_and_tells_what_was_spent(tmp_path):
    sink = Recorder()
    sections = {"run": {"rounds": 9}, "client": {"optimizer": {"lr": 0.1}}, "model": {"name": "mlp", "hidden": 4}}
    f, server = assemble(tmp_path, few_digits(9), (2, 3, 4), sinks=(sink,), **sections)
    budget = ClientBudget(1.0, Limits(5.0, DELTA, target=epsilon(5.0, 1.0, 4, DELTA) + 1e-9))
    assert federate(replace(f, budget=budget), server).round == 4
    assert {record.metrics["epsilon_terms"] for record in sink.records} == {budget.guarantee.terms}
    assert [record.metrics["epsilon"] for record in sink.records] == [epsilon(5.0, 1.0, t, DELTA) for t in (1, 2, 3, 4)]


def test_epsilon_is_that_of_the_rounds_spent():
    budget = ClientBudget(0.1, Limits(1.0, DELTA))
    assert budget.epsilon == 0
    assert budget.allows(cohort(0))
    assert spent(budget, 100).epsilon == epsilon(1.0, 0.1, 100, DELTA) == pytest.approx(7.057, rel=0.01)
    assert ClientBudget(0.1, Limits(0.0, DELTA)).epsilon == 0
    assert spent(ClientBudget(0.1, Limits(0.0, DELTA)), 1).epsilon == math.inf


def test_a_guarantee_names_everything_it_depends_on():
    text = spent(ClientBudget(0.1, Limits(1.0, DELTA)), 100).guarantee.text()
    for part in ("7.05", "1e-05", "update of one client", "Poisson", "rate 0.1", "prv"):
        assert part in text
    text = spent(examples(), 1).guarantee.text()
    assert "one example" in text
    assert "rate 0.01 to 0.2" in text
    assert "rdp" in text
    assert "without bound" in spent(ClientBudget(0.1, Limits(0.0, DELTA)), 1).guarantee.text()


def test_an_examples_epsilon_is_that_of_the_client_that_spent_most():
    budget = examples()
    for t, ids in enumerate([(0, 1), (1,), (1, 2), (1,)]):
        budget.spend(cohort(t, ids))
    costs = [epsilon(1.1, q, s, DELTA, "rdp") for q, s in ((0.05, 20), (0.01, 400), (0.2, 5))]
    assert budget.epsilon == pytest.approx(max(costs), rel=1e-12)
    budget.spend(cohort(4, (0,)))
    assert budget.epsilon == pytest.approx(max(epsilon(1.1, 0.05, 40, DELTA, "rdp"), *costs), rel=1e-12)


def test_a_client_that_may_not_take_part_again_does_not_stop_the_others():
    target = epsilon(1.1, 0.2, 10, DELTA, "rdp")
    budget = examples(target=target)
    spent(budget, 2)
    assert not budget.allows(cohort(2))
    assert not budget.allows(cohort(2, (2,)))
    assert budget.allows(cohort(2, (1,)))


def grown(n, seed, smallest=20, largest=2000):
    """Rates and steps of n clients of different sizes, of which some took part more often."""
    stream = np.random.default_rng(seed)
    sizes = stream.integers(smallest, largest, n)
    return np.minimum(1, 16 / sizes), -(-sizes // 16) * stream.integers(0, 4, n)


@pytest.mark.parametrize("smallest", [20, 1500, 1900])
@pytest.mark.parametrize("seed", range(5))
def test_the_worst_client_is_found_without_asking_for_all(seed, smallest):
    q, steps = grown(400, seed, smallest)
    asked = []

    def cost(rate, taken, accountant="prv"):
        asked.append(accountant)
        return rate * math.sqrt(taken) * (1.1 if accountant == "rdp" else 1.0)

    found, largest = worst(q, steps, cost), max(cost(a, b) for a, b in zip(q, steps, strict=True))
    assert largest * (1 - 1e-12) <= found <= largest * ALIKE**1.5
    assert asked[:-400].count("prv") < 30


def test_only_clients_that_no_other_dominates_are_considered():
    q, steps = grown(300, 9)
    pairs = {(float(a), int(b)) for a, b in zip(q, steps, strict=True) if b}
    best = [p for p in pairs if not any(o != p and o[0] >= p[0] and o[1] >= p[1] for o in pairs)]
    assert undominated(q, steps) == sorted(best, reverse=True)
    assert undominated(q, 0 * steps) == []
    assert undominated(q[:0], steps[:0]) == []


def test_a_resumed_run_has_spent_what_the_uninterrupted_one_has():
    whole = spent(examples(), 7)
    half = spent(examples(), 4)
    resumed = examples()
    resumed.load(resumed.recovered(half.state()))
    assert resumed.epsilon == half.epsilon
    spent(resumed, 3, start=4)
    assert resumed.epsilon == whole.epsilon
    for name, tensor in whole.state().items():
        assert resumed.state()[name].equal(tensor)
        assert resumed.state()[name].dtype == tensor.dtype


@pytest.mark.parametrize("make", [examples, lambda **more: ClientBudget(0.1, Limits(1.1, DELTA, **more))])
def test_a_state_has_the_same_names_shapes_and_types_always(tmp_path, make):
    fresh = make(spend_file=SpendFile(tmp_path / "spent.jsonl"))
    states = [fresh.state(), fresh.recovered({}), spent(fresh, 3).state(), fresh.recovered({})]
    layouts = [{name: (t.shape, t.dtype) for name, t in state.items()} for state in states]
    assert layouts.count(layouts[0]) == 4


@pytest.mark.parametrize("make", [examples, lambda **more: ClientBudget(0.1, Limits(1.1, DELTA, **more))])
def test_what_was_released_and_lost_to_kills_counts(tmp_path, make):
    """Five rounds, checkpoint after the third, killed; one more, killed before any checkpoint; then one more: 7."""
    path = tmp_path / "spent.jsonl"
    first = spent(make(spend_file=SpendFile(path)), 3)
    checkpoint = first.state()
    spent(first, 2, start=3)
    for round_done_again in (3, 3):
        again = make(spend_file=SpendFile(path))
        elsewhere = make()  # a rank without the file
        merged = again.recovered(checkpoint)
        again.load(merged)
        elsewhere.load(merged)
        spent(again, 1, start=round_done_again)
        spent(elsewhere, 1, start=round_done_again)
    assert again.epsilon == elsewhere.epsilon == spent(make(), 7).epsilon
    assert again.state()["released"].tolist() == [7]
    lost_checkpoint = make(spend_file=SpendFile(path))
    lost_checkpoint.load(lost_checkpoint.recovered({}))
    assert lost_checkpoint.epsilon == again.epsilon
    without_file = make(spend_file=SpendFile(tmp_path / "none.jsonl"))
    assert without_file.recovered(checkpoint)["participations"].equal(checkpoint["participations"])


def test_only_those_who_took_part_in_a_lost_round_are_charged(tmp_path):
    budget = examples(spend_file=SpendFile(tmp_path / "spent.jsonl"))
    for t, ids in enumerate([(0, 1), (1,), (0, 1, 2)]):
        budget.spend(cohort(t, ids))
    recovered = examples(spend_file=SpendFile(tmp_path / "spent.jsonl")).recovered({})
    assert recovered["participations"].tolist() == [2, 3, 1]


def test_a_secret_cohort_is_not_written_down(tmp_path):
    path = tmp_path / "spent.jsonl"
    ClientBudget(0.1, Limits(1.1, DELTA, spend_file=SpendFile(path))).spend(cohort(8, (1,)))
    assert json.loads(path.read_text()) == {"release": 1, "round": 8, "clients": None}


def test_a_line_is_flushed_to_disk_before_the_round_goes_on(tmp_path, monkeypatch):
    path, on_disk, really = tmp_path / "spent.jsonl", [], os.fsync

    def fsync(descriptor):
        on_disk.append((os.fstat(descriptor).st_ino, path.read_text().count("\n")))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    file = SpendFile(path)
    file.append(1, 0, None)
    folder = (tmp_path.stat().st_ino, 1)
    assert on_disk == [(path.stat().st_ino, 1), folder]  # the file, and that it is there
    file.append(2, 1, None)
    assert on_disk[2:] == [(path.stat().st_ino, 2)]


def test_a_line_cut_short_spoils_nothing(tmp_path):
    path = tmp_path / "spent.jsonl"
    file = SpendFile(path)
    file.append(1, 0, [0])
    path.write_text(path.read_text() + '{"release": 2, "rou')
    assert file.since(0) == [[0]]
    file.append(2, 1, [1, 2])
    file.append(3, 2, None)
    assert file.since(0) == [[0], [1, 2], None]
    assert file.since(2) == [None]
    assert file.since(3) == []
    assert SpendFile(tmp_path / "none").since(0) == []


def test_a_damaged_number_of_a_release_is_no_release(tmp_path, caplog):
    path = tmp_path / "spent"
    path.write_text('{"release": 1, "clients": [0]}\n{"release": 9000000000000000000, "clients": [1]}\n')
    assert SpendFile(path).since(0) == [[0]]  # and not 9e18 times all
    assert "unreadable line" in caplog.text


def test_a_damaged_line_counts_for_all_and_a_repeated_one_twice(tmp_path):
    path = tmp_path / "spent.jsonl"
    file = SpendFile(path)
    for release in (1, 2, 3, 3):
        file.append(release, release, [release])
    path.write_bytes(path.read_bytes().replace(b'"clients": [2]', b'"clients\xff [2]'))
    assert sorted(file.since(0), key=str) == [None, [1], [3], [3]]


def test_what_another_run_spent_is_refused():
    budget = examples()
    with pytest.raises(ValueError, match=r"privacy.noise_multiplier=1.1: .* spent with 0.9; use that"):
        budget.load(ExampleBudget(RATES, STEPS, Limits(0.9, DELTA)).state())
    with pytest.raises(ValueError, match="2 parties, this run of 3"):
        budget.load(ExampleBudget(RATES[:2], STEPS[:2], Limits(1.1, DELTA)).state())


def test_nothing_promised_nothing_spent():
    budget: Budget = NoBudget()
    budget.spend(cohort(0))
    assert budget.allows(cohort(1))
    assert budget.epsilon is None
    assert budget.guarantee is None
    assert budget.state() == budget.recovered({}) == {}
    budget.load({})
