"""Power of choice over several ranks: every rank draws the same cohort, by one collective of a number a candidate."""

import pytest
from distributed_support import configured, train

COHORT = {"size": 3, "sampler": {"name": "power_of_choice", "candidates": 6}}


def table_of(tmp_path, name, rounds, placement, resume="never"):
    run = {"rounds": rounds, "name": name, "resume": resume}
    sections = {"checkpoint": {"every": 1}, "aggregation": {"sum": "exact"}, "privacy": {"guard": True}}
    data = {"placement": placement, "partition": {"name": "quantity", "num_clients": 9}}
    return configured(tmp_path, run=run, data=data, cohort=COHORT, **sections)


@pytest.mark.parametrize("placement", ["home", "shared"])
def test_any_number_of_ranks_and_a_resume_choose_the_same_clients(run_ranks, tmp_path, placement):
    whole = run_ranks(train, 1, table_of(tmp_path, "whole", 4, placement))[0]
    run_ranks(train, 2, table_of(tmp_path, "cut", 2, placement))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, placement, "auto"))
    assert {r["sha256"] for r in resumed} == {whole["sha256"]}
    assert [m["examples"] for m in resumed[0]["history"]] == [m["examples"] for m in whole["history"]]
    assert resumed[1]["history"][-1]["sent"]["cohort"] > 0
