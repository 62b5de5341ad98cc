"""A run that was cut short and resumed is the uninterrupted run, bit for bit."""

import os
import time

import pytest

from fedddp.config import UsageError
from tests.helpers.distributed import configured, fruitless, train

MOMENTUM = {"server_optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5}}
COUNTING = {"name": "faulty:Counting"}
KEPT = {"optimizer_state": "keep", "optimizer": {"name": "adamw", "lr": 0.01}, "local_steps": 5, "order": "continue"}


def table_of(tmp_path, name, rounds, resume="never", **sections):
    run = {"name": name, "rounds": rounds, "resume": resume}
    return configured(
        tmp_path, run=run, data__partition={"num_clients": 6}, cohort={"size": 4}, checkpoint={"every": 1}, **sections
    )


@pytest.mark.parametrize("algorithm", [MOMENTUM, COUNTING], ids=["server state", "client state"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_resume_after_any_round_equals_the_uninterrupted_run(run_ranks, tmp_path, algorithm, done):
    whole = run_ranks(train, 2, table_of(tmp_path, "whole", 4, algorithm=algorithm))[0]
    run_ranks(train, 2, table_of(tmp_path, "cut", done, algorithm=algorithm))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, "auto", algorithm=algorithm))[0]
    assert resumed["sha256"] == whole["sha256"]
    assert [m["round"] for m in resumed["history"]] == [1, 2, 3, 4]
    told = ("test_accuracy", "test_loss", "train_loss", "participants", "examples")
    assert [[m[k] for k in told] for m in resumed["history"]] == [[m[k] for k in told] for m in whole["history"]]


@pytest.mark.parametrize(
    "sections",
    [{"algorithm": MOMENTUM}, {"algorithm": COUNTING}, {"algorithm": MOMENTUM, "client": KEPT}],
    ids=["server state", "client state", "client optimizer"],
)
def test_resume_onto_another_world_size_with_an_exact_sum(run_ranks, tmp_path, sections):
    exact = {"aggregation": {"sum": "exact"}, **sections}
    whole = run_ranks(train, 1, table_of(tmp_path, "whole", 4, **exact))[0]
    run_ranks(train, 3, table_of(tmp_path, "cut", 2, **exact))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 4, "auto", **exact))[0]
    assert resumed["sha256"] == whole["sha256"]


def test_a_damaged_checkpoint_is_skipped_for_the_last_good_one(run_ranks, tmp_path):
    whole = run_ranks(train, 1, table_of(tmp_path, "whole", 4))[0]
    run_ranks(train, 1, table_of(tmp_path, "cut", 3))
    weights = tmp_path / "runs" / "cut" / "checkpoints" / "round-000003" / "server.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    resumed = run_ranks(train, 1, table_of(tmp_path, "cut", 4, "auto"))[0]
    assert resumed["sha256"] == whole["sha256"]
    assert [m["round"] for m in resumed["history"]] == [1, 2, 3, 4]


def test_a_run_that_is_done_has_nothing_left_to_do(run_ranks, tmp_path):
    first = run_ranks(train, 2, table_of(tmp_path, "done", 2))[0]
    again = run_ranks(train, 2, table_of(tmp_path, "done", 2, "auto"))[0]
    assert again["sha256"] == first["sha256"]
    assert again["history"] == first["history"]


def refused(comm, table):
    try:
        train(comm, table)
    except UsageError as error:
        return str(error)
    return "accepted"


def test_another_configuration_is_refused_by_its_keys(run_ranks, tmp_path):
    run_ranks(train, 1, table_of(tmp_path, "kept", 1))
    other = table_of(tmp_path, "kept", 3, "auto", client={"batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.2}})
    told = run_ranks(refused, 1, other)[0]
    assert "client.batch_size is 10 there, 20 here" in told
    assert "client.optimizer.lr is 0.1 there, 0.2 here" in told
    assert "\n" not in told
    free = table_of(tmp_path, "kept", 3, "auto", evaluate={"every": 2})
    assert run_ranks(refused, 1, free) == ["accepted"]


def test_a_run_that_reached_its_target_is_not_trained_further(run_ranks, tmp_path):
    target = {"evaluate": {"target_accuracy": 0.2}}
    first = run_ranks(train, 2, table_of(tmp_path, "good", 20, **target))[0]
    assert first["rounds"] < 20
    again = run_ranks(train, 2, table_of(tmp_path, "good", 20, "auto", **target))[0]
    assert (again["sha256"], again["rounds"]) == (first["sha256"], first["rounds"])
    higher = run_ranks(train, 2, table_of(tmp_path, "good", 20, "auto", evaluate={"target_accuracy": 0.99999}))[0]
    assert higher["rounds"] > first["rounds"]


def test_a_run_without_any_contribution_is_still_one_after_a_restart(run_ranks, tmp_path):
    nobody = {"name": "faulty:Faulty", "how": "nan", "client": -1}
    assert run_ranks(fruitless, 2, table_of(tmp_path, "none", 2, algorithm=nobody)) == [True, True]
    assert run_ranks(fruitless, 2, table_of(tmp_path, "none", 2, "auto", algorithm=nobody)) == [True, True]
    late = {"name": "faulty:Faulty", "how": "nan", "client": -1, "round": 2}
    assert run_ranks(fruitless, 2, table_of(tmp_path, "late", 1, algorithm=late)) == [False, False]
    assert run_ranks(fruitless, 2, table_of(tmp_path, "late", 2, "auto", algorithm=late)) == [False, False]


def with_a_slow_disk(comm, table):
    if comm.rank == 0:
        sync, seconds = os.fsync, [6.0]  # the first call is slow
        os.fsync = lambda file: (time.sleep(seconds.pop() if seconds else 0), sync(file))[1]
    return train(comm, table)["rounds"]


def test_a_disk_slower_than_the_timeout_is_waited_for(run_ranks, tmp_path):
    table = table_of(tmp_path, "slow", 4)
    assert run_ranks(with_a_slow_disk, 2, table, timeout=1.5) == [4, 4]
