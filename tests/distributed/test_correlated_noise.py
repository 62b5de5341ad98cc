"""Client-level privacy with correlated noise on real ranks: what the server gets, after a resume and after a kill."""

import json
import math
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedddp.algorithms import FedAvg
from fedddp.comm import CommError
from fedddp.federation import federate
from fedddp.privacy.mechanisms import Banded, Tree
from tests.helpers.correlated import noise_matrix, steps_of
from tests.helpers.distributed import configured, experiment_of, train

SIGMA, CLIP, M, CLIENTS = 0.8, 0.5, 3, 12
KINDS = {"tree": Tree(4), "banded_mf": Banded(4)}
MASKED = {"secure_aggregation": {"enabled": True}, "guard": True}


def table_of(tmp_path, mechanism, name="run", rounds=9, resume="never", lr=1e-9, hidden=128, **privacy):
    """Updates are next to nothing unless ``lr`` says otherwise: what the model gains in a round is noise."""
    return configured(
        tmp_path,
        run={"name": name, "rounds": rounds, "resume": resume},
        data__partition={"num_clients": CLIENTS},
        model={"hidden": hidden},
        cohort={"size": M},
        client={"optimizer": {"name": "sgd", "lr": lr}},
        checkpoint={"every": 1, "keep": 20},
        privacy={
            "level": "client",
            "mechanism": mechanism,
            "noise_multiplier": SIGMA,
            "clip": CLIP,
            "delta": 1e-2,
            "randomness": "seeded",
            **privacy,
        },
    )


def assert_covariance(steps, matrix, scale):
    """The covariance of the rounds' noise, and the variance of every sum over rounds, are those of ``matrix``."""
    expected = (matrix @ matrix.T)[1 : 1 + len(steps), 1 : 1 + len(steps)] * scale**2
    measured = (steps @ steps.T / steps.shape[1]).numpy()
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs(measured - expected).max() < 0.02 * size.max()
    assert np.abs(np.diag(measured) / np.diag(expected) - 1).max() < 0.02
    sums = [np.tril(np.ones_like(x)) @ x @ np.tril(np.ones_like(x)).T for x in (measured, expected)]
    assert np.abs(np.diag(sums[0]) / np.diag(sums[1]) - 1).max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "masked"), [(2, False), (3, True)])
def test_the_noise_of_the_model_is_that_of_the_matrix(run_ranks, tmp_path, kind, ranks, masked):
    """Single rounds, sums over rounds and all covariances; of three ranks under masks two are sure to be in a sum."""
    results = run_ranks(train, ranks, table_of(tmp_path, kind, **(MASKED if masked else {})))
    assert len({result["sha256"] for result in results}) == 1
    sure = 2 if masked else ranks
    scale = SIGMA * CLIP / M * math.sqrt(ranks / sure)
    assert_covariance(steps_of(tmp_path / "runs" / "run"), noise_matrix(KINDS[kind], 9), scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("done", [1, 5])
def test_a_resumed_seeded_run_is_the_uninterrupted_one(run_ranks, tmp_path, kind, done):
    whole = run_ranks(train, 2, table_of(tmp_path, kind, "whole", 7, lr=0.1, hidden=16))[0]
    run_ranks(train, 2, table_of(tmp_path, kind, "cut", done, lr=0.1, hidden=16))
    resumed = run_ranks(train, 2, table_of(tmp_path, kind, "cut", 7, "auto", lr=0.1, hidden=16))[0]
    assert resumed["sha256"] == whole["sha256"]
    assert [m["epsilon"] for m in resumed["history"]] == [m["epsilon"] for m in whole["history"]]
    k = [len({m["epsilon"] for m in whole["history"][: t + 1]}) for t in range(7)]
    assert k == [1, 1, 1, 1, 2, 2, 2]  # a client takes part every 4th round


def correlation(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_a_secret_run_that_is_resumed_begins_with_noise_of_its_own(run_ranks, tmp_path):
    run_ranks(train, 2, table_of(tmp_path, "banded_mf", "cut", 4, randomness="secret"))
    run_ranks(train, 2, table_of(tmp_path, "banded_mf", "cut", 7, "auto", randomness="secret"))
    steps = steps_of(tmp_path / "runs" / "cut")  # of rounds 2 to 7
    b = noise_matrix(Banded(4), 4)
    at_once = (b @ b.T)[2, 1] / math.sqrt((b @ b.T)[2, 2] * (b @ b.T)[1, 1])
    assert correlation(steps[0], steps[1]) == pytest.approx(at_once, abs=0.02)
    for before in range(3):  # 5 standard deviations of 100,000 entries
        for after in range(3, 6):
            assert abs(correlation(steps[before], steps[after])) < 0.016
    fresh = noise_matrix(Banded(4), 3)
    assert float(steps[3].std()) == pytest.approx(np.linalg.norm(fresh[0]) * SIGMA * CLIP / M, rel=0.02)


def killed(comm, table, at):
    """Train until rank 0 dies by signal 9 when it has the sum of round ``at``; the turns of the clients until then."""
    experiment, turns = experiment_of(comm, table), []
    spend, update = experiment.federation.budget.spend, FedAvg.server_update
    experiment.federation.budget.spend = lambda cohort: turns.append(cohort.ids) or spend(cohort)

    def dying(self, server, mean, cohort):
        if server.round + 1 == at and comm.rank == 0:
            experiment.federation.checkpoints.wait()
            torch.save(mean.vectors["delta"], f"{table['run']['dir']}/lost.pt")
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, server, mean, cohort)

    FedAvg.server_update = dying
    try:
        federate(experiment.federation, experiment.server)
    except CommError:
        assert at
    return turns


@pytest.mark.parametrize("randomness", ["secret", "seeded"])
def test_after_a_kill_no_noise_is_used_again_and_no_client_takes_part_too_soon(run_ranks, tmp_path, randomness):
    """Round 3 is released, then rank 0 is killed; the difference of both releases of round 3 must not show updates."""
    privacy = {"randomness": randomness}
    table = table_of(tmp_path, "banded_mf", "cut", 9, **privacy)
    first = run_ranks(killed, 2, table, 3, lost=(0,))[1]
    folder = tmp_path / "runs" / "cut"
    assert [json.loads(line)["release"] for line in (folder / "privacy.jsonl").read_text().splitlines()] == [1, 2, 3]
    lost = torch.load(tmp_path / "runs" / "lost.pt").double()
    second = run_ranks(killed, 2, table_of(tmp_path, "banded_mf", "cut", 9, "auto", **privacy), 0)[1]
    assert (len(first), len(second)) == (3, 7)
    turns = [*first, *second]  # of all releases, the lost one among them
    for k in range(CLIENTS):
        taken = [t for t, ids in enumerate(turns) if k in ids]
        assert all(b - a == 4 for a, b in pairwise(taken)), taken
    again = steps_of(folder)[1]
    if randomness == "secret":
        assert abs(correlation(lost, again)) < 0.016
    else:  # the next row of the same matrix
        b = noise_matrix(Banded(4), 4)
        assert correlation(lost, again) == pytest.approx((b @ b.T)[3, 2] / (b @ b.T)[2, 2], abs=0.03)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({m["epsilon"] for m in history}) == 3  # ten releases: k = 3
    assert history[3]["epsilon"] > history[2]["epsilon"]


ADAM = {"name": "fedavg", "server_optimizer": {"name": "adam", "lr": 0.1}}


@pytest.mark.parametrize(
    ("kind", "bits", "algorithm"),
    [("tree", 32, ADAM), ("banded_mf", 32, {"name": "fedprox"}), ("banded_mf", 64, {"name": "ditto"})],
    ids=["tree, adam", "banded, fedprox", "banded, ditto"],
)
def test_other_algorithms_and_32_bits_learn_under_masks(run_ranks, tmp_path, kind, bits, algorithm):
    masked = {"secure_aggregation": {"enabled": True, "bits": bits}, "guard": True}
    table = table_of(tmp_path, kind, rounds=3, lr=0.1, hidden=16, **masked)
    table |= {"algorithm": algorithm, "checkpoint": {"every": 1, "clients_dir": str(tmp_path / "own" / "{rank}")}}
    results = run_ranks(train, 3, table)
    assert len({result["sha256"] for result in results}) == 1
    assert [m["participants"] for m in results[0]["history"]] == [None] * 3


def test_a_run_goes_on_with_another_number_of_ranks_and_more_rounds_but_not_with_other_noise(run_ranks, tmp_path):
    run_ranks(train, 2, table_of(tmp_path, "banded_mf", "cut", 2, hidden=16, randomness="secret"))
    more = table_of(tmp_path, "banded_mf", "cut", 6, "auto", hidden=16, randomness="secret")
    for key, value in (("mechanism", "tree"), ("bands", 2)):
        changed = more | {"privacy": more["privacy"] | {key: value}}
        with pytest.raises(AssertionError, match=f"privacy.{key} is "):
            run_ranks(train, 1, changed)
    assert len(run_ranks(train, 3, more)[0]["history"]) == 6


def losing(comm, table):
    """Train while rank 3 dies in round 3, before it has sent its part of the sum."""
    regroup, experiment = comm.regroup, experiment_of(comm, table)
    comm.regroup = lambda: regroup(1.25)
    spend = experiment.federation.budget.spend

    def dying(cohort):
        spend(cohort)
        if comm.rank == 3 and cohort.round == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    experiment.federation.budget.spend = dying
    federate(experiment.federation, experiment.server)


def test_the_noise_of_those_who_are_left_is_enough_in_all_rounds_together(run_ranks, tmp_path):
    """Four ranks add noise, three are sure to be in a sum: theirs is that of the matrix, before the loss and after."""
    run_ranks(losing, 4, table_of(tmp_path, "banded_mf", rounds=6, **MASKED), lost=(3,))
    steps = steps_of(tmp_path / "runs" / "run")  # of rounds 2 to 6; the lost rank's noise is in round 2
    b = noise_matrix(Banded(4), 6)
    expected = (b @ b.T)[1:, 1:].copy()
    expected[0, 0] *= 4 / 3
    expected *= (SIGMA * CLIP / M) ** 2
    measured = (steps @ steps.T / steps.shape[1]).numpy()
    assert np.abs(measured - expected).max() < 0.02 * expected.max()
