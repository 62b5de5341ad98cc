"""Whole rounds over several ranks: identities between world sizes, faults of clients, stopping together."""

import math

import pytest
import torch

from fedddp.federation import federate
from tests.helpers.distributed import configured, experiment_of, train

TWELVE = {"num_clients": 12, "name": "quantity", "alpha": 2.0, "min_size": 5}


@pytest.mark.parametrize("sum", ["exact", "fast"])
def test_one_model_for_any_number_of_ranks_only_if_the_sum_is_exact(run_ranks, tmp_path, sum):
    table = configured(tmp_path, aggregation={"sum": sum}, data__partition=TWELVE)
    shas = set()
    for world_size in (1, 2, 3, 4):
        results = run_ranks(train, world_size, table)
        assert len({r["sha256"] for r in results}) == 1  # every rank holds the same server state
        shas.add(results[0]["sha256"])
    assert (len(shas) == 1) == (sum == "exact")


def test_exact_and_fast_agree_to_rounding(run_ranks, tmp_path):
    exact, fast = (
        run_ranks(train, 2, configured(tmp_path, aggregation={"sum": sum}, data__partition=TWELVE))[0]["w"]
        for sum in ("exact", "fast")
    )
    torch.testing.assert_close(exact, fast, rtol=0, atol=1e-5)  # two rounds amplify one rounding of 1e-8


def test_ranks_without_a_sampled_client_take_part(run_ranks, tmp_path):
    table = configured(tmp_path, cohort={"size": 1}, data__partition={"num_clients": 6}, aggregation={"sum": "exact"})
    alone, three = run_ranks(train, 1, table)[0], run_ranks(train, 3, table)[0]
    assert alone["sha256"] == three["sha256"]
    assert [m["participants"] for m in three["history"]] == [1, 1]


def test_sharded_evaluation_gives_rank_0s_score(run_ranks, tmp_path):
    at_rank0 = run_ranks(train, 1, configured(tmp_path, data__partition={"num_clients": 3}))[0]["history"]
    table = configured(
        tmp_path, data__partition={"num_clients": 3}, evaluate={"where": "sharded"}, aggregation={"sum": "exact"}
    )
    sharded = run_ranks(train, 3, table)[0]["history"]
    assert [m["test_accuracy"] for m in sharded] == [m["test_accuracy"] for m in at_rank0]
    assert sharded[-1]["test_loss"] == pytest.approx(at_rank0[-1]["test_loss"], abs=1e-5)


@pytest.mark.parametrize("where", ["rank0", "sharded"])
def test_all_ranks_stop_at_the_target(run_ranks, tmp_path, where):
    table = configured(tmp_path, run={"rounds": 30}, evaluate={"where": where, "target_accuracy": 0.5})
    results = run_ranks(train, 2, table)
    assert results[0]["rounds"] == results[1]["rounds"] < 30
    assert results[0]["history"][-1]["test_accuracy"] >= 0.5


@pytest.mark.parametrize("how", ["raise", "nan", "inf", "huge"])
def test_a_failed_client_costs_its_own_contribution_only(run_ranks, tmp_path, how):
    """The model is the one that the other clients alone would have made."""
    partition = {"num_clients": 4}
    faulty = {"name": "faulty:Faulty", "how": how, "client": 1}
    table = configured(tmp_path, algorithm=faulty, aggregation={"sum": "exact"}, data__partition=partition)
    result = run_ranks(train, 2, table)[0]
    assert [(m["participants"], m["failures"]) for m in result["history"]] == [(3, 1), (3, 1)]
    assert all(math.isfinite(m["train_loss"]) for m in result["history"])
    assert torch.isfinite(result["w"]).all()
    other = configured(
        tmp_path, algorithm={**faulty, "how": "raise"}, aggregation={"sum": "exact"}, data__partition=partition
    )
    assert run_ranks(train, 1, other)[0]["sha256"] == result["sha256"]


def test_if_all_clients_fail_the_model_stays_as_it_was(run_ranks, tmp_path):
    one = configured(tmp_path, run={"rounds": 1})
    then_fail = configured(tmp_path, algorithm={"name": "faulty:Faulty", "client": -1, "round": 2, "how": "nan"})
    before, after = run_ranks(train, 2, one)[0], run_ranks(train, 2, then_fail)[0]
    assert after["sha256"] == before["sha256"]
    assert after["rounds"] == 2
    assert [m["failures"] for m in after["history"]] == [0, 2]
    assert after["history"][1]["train_loss"] is None


def diverge(comm, table):
    """Rank 1's model loses one bit before round 2."""
    experiment = experiment_of(comm, table)
    server = federate(experiment.federation.until(1), experiment.server)
    if comm.rank == 1:
        server.w.view(torch.int32)[123] ^= 1
    try:
        federate(experiment.federation, server)
    except RuntimeError as error:
        return str(error)
    return "unnoticed"


def test_a_model_that_differs_between_ranks_is_noticed(run_ranks, tmp_path):
    told = run_ranks(diverge, 3, configured(tmp_path))
    assert told == ["round 2: the model on rank(s) [1] is not the one on rank 0"] * 3
