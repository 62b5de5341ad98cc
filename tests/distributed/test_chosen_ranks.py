"""Power of choice and the mean of the clients' models over several ranks, each by one collective of its own."""

import pytest

from tests.helpers.distributed import configured, train

COHORT = {"size": 3, "sampler": {"name": "power_of_choice", "candidates": 6}}


def table_of(tmp_path, name, rounds, placement, resume="never"):
    run = {"rounds": rounds, "name": name, "resume": resume}
    sections = {"checkpoint": {"every": 1}, "aggregation": {"sum": "exact"}, "privacy": {"guard": True}}
    data = {"placement": placement, "partition": {"name": "quantity", "num_clients": 9}}
    return configured(tmp_path, run=run, data=data, cohort=COHORT, evaluate={"clients_mean": True}, **sections)


@pytest.mark.parametrize("placement", ["home", "shared"])
def test_any_number_of_ranks_and_a_resume_choose_the_same_clients(run_ranks, tmp_path, placement):
    whole = run_ranks(train, 1, table_of(tmp_path, "whole", 4, placement))[0]
    run_ranks(train, 2, table_of(tmp_path, "cut", 2, placement))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, placement, "auto"))
    assert {r["sha256"] for r in resumed} == {whole["sha256"]}
    assert [m["examples"] for m in resumed[0]["history"]] == [m["examples"] for m in whole["history"]]
    means = [[m["clients_mean_loss"] for m in result["history"]] for result in (resumed[0], whole)]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    assert resumed[1]["history"][-1]["sent"]["cohort"] > 0
