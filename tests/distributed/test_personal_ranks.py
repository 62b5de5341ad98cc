"""Personal models over several ranks: as on one, with another number of ranks after a resume, and on the wire."""

import pytest

from fedddp.federation import federate
from tests.helpers.distributed import configured, experiment_of, train

PARTITION = {"num_clients": 7, "name": "shards", "shards_per_client": 2}
EVALUATE = {"holdout": 0.25, "personal_every": 1}
ALGORITHMS = [
    {"name": "ditto"},
    {"name": "apfl"},
    {"name": "ifca", "clusters": 3},
    {"name": "fedrep", "head_epochs": 2, "inner": {"name": "ditto"}},
]
FIGURES = (
    "personal_accuracy_mean",
    "personal_accuracy_std",
    "personal_accuracy_worst10",
    "global_on_clients_accuracy_mean",
)


def table_of(tmp_path, name, rounds, resume="never", **sections):
    run = {"rounds": rounds, "name": name, "resume": resume}
    sections = {"checkpoint": {"every": 1}, "aggregation": {"sum": "exact"}, "cohort": {"size": 4}} | sections
    return configured(tmp_path, run=run, data__partition=PARTITION, evaluate=EVALUATE, **sections)


def figures(result):
    return [[m[name] for name in FIGURES] for m in result["history"]]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a["name"])
def test_any_number_of_ranks_and_a_resume_give_the_same_clients(run_ranks, tmp_path, algorithm):
    """Four rounds on one rank; two on three ranks, then two more on two: the same bits, the same scores."""
    whole = run_ranks(train, 1, table_of(tmp_path, "whole", 4, algorithm=algorithm))[0]
    cut = run_ranks(train, 3, table_of(tmp_path, "cut", 2, algorithm=algorithm))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, "auto", algorithm=algorithm))
    assert {r["sha256"] for r in resumed} == {whole["sha256"]}
    assert figures(cut[1]) == figures(whole)[:2]  # every rank knows the scores
    assert figures(resumed[0]) == figures(whole)  # the history of rank 0 begins with what was written
    personal, of_global = (figures(whole)[-1][i] for i in (0, 3))
    assert personal != of_global


def held_at_home(comm, table):
    """What this rank holds and what it sent, under the guard, in a run whose data lie at home."""
    experiment = experiment_of(comm, table)
    f = experiment.federation
    federate(f, experiment.server)
    own = [k for k in range(7) if f.evaluation.clients._held.holds(k)]
    examples = [(len(f.evaluation.clients._held.examples(k)[1]), len(f.trainer.data.examples(k)[1])) for k in own]
    sent = [e for r in f.telemetry.history for e in [r["sent"]]]
    return {"own": dict(zip(own, examples, strict=True)), "sent": sent, "history": f.telemetry.history}


def test_at_home_under_the_guard(run_ranks, tmp_path):
    """A rank scores its own clients; all it sends of that are two numbers a client."""
    at_home = {"data": {"placement": "home", "args": {"num_train": 140, "num_test": 20, "noise": 0.5}}}
    sections = {"algorithm": {"name": "fedper"}, "privacy": {"guard": True}, "cohort": {}}
    first, second = run_ranks(held_at_home, 2, _merged(table_of(tmp_path, "home", 2, **sections), at_home))
    assert (sorted(first["own"]), sorted(second["own"])) == ([0, 2, 4, 6], [1, 3, 5])
    assert set(first["own"].values()) == set(second["own"].values()) == {(5, 15)}
    assert [sent["evaluate clients"] for sent in first["sent"]] == [2 * 7 * 8] * 2  # two ranks: 2 (R-1)/R is 1
    alone = run_ranks(held_at_home, 1, _merged(table_of(tmp_path, "alone", 2, **sections), at_home))[0]
    assert figures(alone) == figures(first)


def test_the_share_held_out_may_not_change_on_resume_but_how_often_it_is_used_may(run_ranks, tmp_path):
    run_ranks(train, 1, table_of(tmp_path, "kept", 1))
    other = _merged(table_of(tmp_path, "kept", 2, "auto"), {"evaluate": {"personal_every": 2}})
    assert run_ranks(train, 1, other)[0]["rounds"] == 2
    other = _merged(table_of(tmp_path, "kept", 3, "auto"), {"evaluate": {"holdout": 0.5}})
    with pytest.raises(
        AssertionError, match=r"UsageError: run\.resume=[^\n]*evaluate\.holdout is 0\.25 there, 0\.5 here"
    ):
        run_ranks(train, 1, other)


def _merged(table, over):
    return {name: {**keys, **over.get(name, {})} for name, keys in table.items()}
