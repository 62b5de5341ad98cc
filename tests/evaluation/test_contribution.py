"""What clients contribute: closed forms, and a client whose labels are random contributes least."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fedddp
from fedddp.algorithms import FedAvg
from fedddp.comm import Comm, Place
from fedddp.config import build
from fedddp.data import load
from fedddp.evaluation.contribution import Contributions, shapley
from fedddp.setup.checks import TABLE
from fedddp.types import Cohort, Mean, ServerState, Update
from tests.helpers.support import flat

DELTAS, WEIGHTS = torch.tensor([[1.0], [4.0], [-2.0], [0.5]]), torch.tensor([10.0, 30.0, 40.0, 20.0])


def linear(how):
    """A round of four clients whose model is one number, and whose metric is three times that number."""
    measured = Contributions(FedAvg(), how, lambda w: 3 * float(w[0]), Comm.alone(), 1, 0)
    server = ServerState(torch.tensor([0.5]), flat(1), {}, 0)
    measured.seen.see(0, (2, 3, 5, 7), Update({"delta": DELTAS}, WEIGHTS))
    u = (WEIGHTS[:, None] * DELTAS).sum(0) / WEIGHTS.sum()
    mean = Mean({"delta": u}, float(WEIGHTS.sum()), 4, 100)
    after = measured.server_update(server, mean, Cohort(0, (2, 3, 5, 7), 8))
    assert after.w == 0.5 + u
    assert measured.after(2) == {}
    return measured.after(1)


def averaged(members):
    rows = list(members)
    return float((WEIGHTS[rows] * DELTAS[rows, 0]).sum() / WEIGHTS[rows].sum()) if rows else 0.0


def test_leave_one_out_is_the_mean_with_a_client_less_the_mean_without():
    found = linear("leave_one_out")
    everyone = averaged(range(4))
    expected = [3 * (everyone - averaged(j for j in range(4) if j != i)) for i in range(4)]
    assert list(found) == [f"contribution_{k}" for k in (2, 3, 5, 7)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_shapley_values_of_few_clients_are_exact_and_sum_to_what_the_round_brought():
    """Of three clients all six orders are taken."""
    value = lambda members: 3 * averaged(members)  # noqa: E731
    found = shapley(value, 3, seed=0)
    assert sum(found.values()) == pytest.approx(value((0, 1, 2)))
    v = {s: value(s) for s in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]}
    pairs = (v[0, 1] - v[(1,)]) + (v[0, 2] - v[(2,)])
    first = (v[(0,)] - v[()]) / 3 + pairs / 6 + (v[0, 1, 2] - v[1, 2]) / 3
    assert found[0] == pytest.approx(first)


def test_shapley_values_of_an_additive_game_are_its_terms():
    terms = np.array([0.3, -0.1, 0.25, 0.2, 0.15])
    found = shapley(lambda members: float(terms[list(members)].sum()), 5, seed=1)
    assert [found[i] for i in range(5)] == pytest.approx(terms, abs=2e-3)  # cut within the tolerance of the whole


def test_a_value_that_is_reached_is_not_evaluated_further():
    asked = []
    shapley(lambda members: (asked.append(members), float(len(members) > 0))[1], 6, seed=0)
    assert max(len(members) for members in asked if len(members) < 6) == 1


@pytest.fixture(scope="module")
def mislabelled():
    """Digits of four clients, of whom the third has random labels."""
    data = load("mnist-mini", None, False, {})
    x, y = data.train.x[:1200].flatten(1).float() / 255, data.train.y[:1200].clone()
    rows = [list(range(k, 1200, 4)) for k in range(4)]
    y[rows[2]] = torch.randint(0, 10, (300,), generator=torch.Generator().manual_seed(0))
    test = data.test.x[:400].flatten(1).float() / 255, data.test.y[:400]
    return fedddp.Dataset.of((x, y), test), rows


def trained(folder, mislabelled, how, **sections):
    data, rows = mislabelled
    run = {"dir": str(folder), "rounds": 3, "threads": 1}
    evaluate = {"contribution": how}
    quiet = {"telemetry": {"progress": "off", "tensorboard": False}}
    model = {"name": "logistic"}
    return fedddp.run(quiet, dataset=data, partition=rows, run=run, evaluate=evaluate, model=model, **sections)


@pytest.mark.parametrize("how", ["leave_one_out", "shapley"])
def test_a_client_with_random_labels_contributes_least_and_the_model_is_the_same(tmp_path, mislabelled, how):
    result = trained(tmp_path, mislabelled, how)
    totals = [sum(m[f"contribution_{k}"] for m in result.history) for k in range(4)]
    assert min(range(4), key=totals.__getitem__) == 2
    plain = trained(tmp_path, mislabelled, "off")
    assert plain.summary["model_sha256"] == result.summary["model_sha256"]
    assert not [key for key in plain.history[0] if key.startswith("contribution")]


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"privacy": {"level": "client", "noise_multiplier": 1.0}}, "contribution-private"),
        ({"privacy": {"secure_aggregation": {"enabled": True}}}, "contribution-private"),
        ({"aggregation": {"rule": {"name": "median"}}}, "contribution-mean"),
        ({"aggregation": {"compression": {"name": "int8"}}}, "contribution-mean"),
    ],
)
def test_what_hides_or_changes_single_updates_is_refused(tmp_path, mislabelled, sections, code):
    with pytest.raises(fedddp.UsageError) as refused:
        trained(tmp_path / "runs", mislabelled, "leave_one_out", **sections)
    assert (refused.value.key, refused.value.code) == ("evaluate.contribution", code)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("how", "ranks", "refused"), [("shapley", 2, True), ("shapley", 1, False), ("leave_one_out", 2, False)]
)
def test_the_shapley_value_needs_one_rank(how, ranks, refused):
    (check,) = [check for check in TABLE if check.code == "contribution-ranks"]
    config = build({"evaluate": {"contribution": how}})
    assert bool(check.applies(SimpleNamespace(config=config, place=Place(0, ranks)))) == refused
