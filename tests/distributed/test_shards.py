"""Rules over several ranks: the result of one rank, whoever trained which clients, and what is sent for it."""

import pytest
import torch
from robust_support import DEALT, LENGTH, RULES, a_round, every_rule

from fedddp.federation import federate
from tests.helpers.distributed import configured, experiment_of, train

COORDINATEWISE = ("mean", "median", "trimmed_mean")
FIVE = {"num_clients": 5, "name": "quantity", "alpha": 2.0, "min_size": 5}


def test_any_number_of_ranks_gives_one_result(run_ranks):
    """1, 2 and 3 ranks, one of them without a client; coordinate-wise rules to the last bit, others to rounding."""
    alone = run_ranks(every_rule, 1)[0][0]
    for world_size in (2, 3):
        ranks = run_ranks(every_rule, world_size)
        for found, _ in ranks:
            assert found.keys() == alone.keys()
            for name, result in found.items():
                assert torch.equal(result, ranks[0][0][name]), name  # every rank has the same
                tolerance = 0 if name.startswith(COORDINATEWISE) else 1e-5
                torch.testing.assert_close(result, alone[name], rtol=0, atol=tolerance, msg=name)


def sent_for(comm):
    told = {}
    for name in ("median", "norm_bound", "krum"):
        a_round(comm, RULES[name], DEALT[comm.world_size][comm.rank])
        sent = [entry for entry in comm.ledger.take() if entry.op != "store"]  # notes of where a rank is
        told[name] = [(entry.op, entry.dtype, entry.shape, entry.bytes) for entry in sent]
    return told


def test_what_a_round_sends(run_ranks):
    """Tail and counts, columns of at most five rows, what is known of rows, the result's columns: no whole row."""
    c = -(-LENGTH // 2)
    expected = {}
    for name, known in (("median", None), ("norm_bound", (7,)), ("krum", (7, 7))):
        columns = ("all_to_all", "float32", (2, 5, c + 3), 5 * (c + 3) * 4)
        of_rows = [("all_reduce", "float64", known, 8 * torch.zeros(known).numel())] if known else []
        result = ("all_gather", "float32", (1, c), 4 * c)
        expected[name] = [("all_reduce", "float64", (4 + 2,), 48), columns, *of_rows, result]
    assert run_ranks(sent_for, 2) == [expected] * 2


@pytest.mark.parametrize("rule", [{"name": "krum", "num_byzantine": 1}, {"name": "median"}])
def test_training_with_a_rule_is_the_same_on_one_rank_and_three(run_ranks, tmp_path, rule):
    """With the guard on, a client that fails in each round and one that flips its sign."""
    exact = rule["name"] == "median"
    table = configured(
        tmp_path,
        algorithm={"name": "faulty:Faulty", "client": 3, "how": "raise"},
        aggregation={"rule": rule, "sum": "exact" if exact else "fast"},
        attack={"name": "sign_flip", "num_clients": 1, "scale": 5.0},
        privacy={"guard": True},
        data__partition=FIVE | {"num_clients": 6},
    )
    found = {ranks: run_ranks(train, ranks, table) for ranks in (1, 3)}
    assert all(len({r["sha256"] for r in results}) == 1 for results in found.values())
    for results in found.values():
        torch.testing.assert_close(results[0]["w"], found[1][0]["w"], rtol=0, atol=0 if exact else 1e-5)
        assert [(m["participants"], m["failures"]) for m in results[0]["history"]] == [(5, 1)] * 2


def success_and_model(comm, table):
    experiment = experiment_of(comm, table)
    server = federate(experiment.federation, experiment.server)
    return experiment.federation.telemetry.history[-1]["attack_success"], server.w


def test_success_of_a_backdoor_is_measured_by_all_ranks(run_ranks, tmp_path):
    """The same figure from one rank and from two, each with its share of the marked test images."""
    attack = {"name": "backdoor", "num_clients": 2, "target": 1, "boost": 3.0}
    table = configured(
        tmp_path, run={"rounds": 3}, aggregation={"sum": "exact"}, attack=attack, data__partition={"num_clients": 6}
    )
    (alone, w), *_ = run_ranks(success_and_model, 1, table)
    two = run_ranks(success_and_model, 2, table)
    assert all(torch.equal(w, other) for _, other in two)
    assert [told for told, _ in two] == [pytest.approx(alone)] * 2
    assert 0.0 < alone <= 1.0
