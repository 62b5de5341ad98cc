"""Runs under the privacy section: what they learn, what they tell, what they spend, and when they stop."""

import pytest
import torch

from fedddp.aggregation.pipeline import Inbox, checksum
from fedddp.comm import CommError
from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.privacy import epsilon
from fedddp.secure.attempt import Attempt
from tests.helpers.distributed import configured, experiment_of, fruitless, train

MASKED = {"secure_aggregation": {"enabled": True}, "guard": True}
EXAMPLE = {"level": "example", "noise_multiplier": 1.0, "randomness": "seeded", "guard": True}
CLIENT = {"level": "client", "noise_multiplier": 0.8, "clip": 0.5, "delta": 1e-2, "randomness": "seeded"}


def table_of(tmp_path, name="run", rounds=2, resume="never", clients=6, **sections):
    run = {"name": name, "rounds": rounds, "resume": resume}
    cohort = {"size": 4} if clients > 4 else {}
    return configured(tmp_path, run=run, data__partition={"num_clients": clients}, cohort=cohort, **sections)


@pytest.mark.parametrize("bits", [64, 32])
def test_under_masks_the_model_is_the_one_without_them_and_no_client_is_told_apart(run_ranks, tmp_path, bits):
    plain = run_ranks(train, 3, table_of(tmp_path, "plain"))
    masked = run_ranks(
        train, 3, table_of(tmp_path, "masked", privacy=MASKED | {"secure_aggregation": {"enabled": True, "bits": bits}})
    )
    assert len({result["sha256"] for result in masked}) == 1
    close = 1e-5 if bits == 64 else 1e-3  # truncated at 2^-12 a client in 32 bits
    assert torch.allclose(masked[0]["w"], plain[0]["w"], rtol=0, atol=close)
    assert not torch.equal(masked[0]["w"], torch.zeros_like(masked[0]["w"]))
    for with_masks, without in zip(masked[0]["history"], plain[0]["history"], strict=True):
        assert with_masks["train_loss"] == pytest.approx(without["train_loss"], abs=1e-3)
        assert with_masks["participants"] == without["participants"] == 4
        assert any(purpose == "secure reveal" for purpose in with_masks["sent"])


def test_whoever_has_no_sampled_client_sends_masked_zeros(run_ranks, tmp_path):
    """One client of six a round: two of the three ranks have nothing to give."""
    run, alone = {"cohort": {"size": 1}}, {"secure_aggregation": {"enabled": True, "min_clients": 1}}
    plain = run_ranks(train, 3, table_of(tmp_path, "plain", 3) | run)[0]
    masked = run_ranks(train, 3, table_of(tmp_path, "masked", 3, privacy=MASKED | alone) | run)[0]
    assert torch.allclose(masked["w"], plain["w"], rtol=0, atol=1e-5)
    assert masked["history"][0]["sent"]["aggregate"] > 8 * len(masked["w"])


def test_a_round_of_too_few_clients_is_aborted_before_anything_is_masked(run_ranks, tmp_path):
    """The client of rank 2 fails in the first of two rounds, and two of three are fewer than min_clients."""
    results = run_ranks(one_fails, 3, table_of(tmp_path, clients=3, privacy=MASKED))
    for masked, participants, aborted in results:
        assert masked == 1  # in the second round
        assert participants == [0, 3]
        assert aborted == [True, False]


def one_fails(comm, table):
    experiment = experiment_of(comm, table)
    trainer, masked, reports = experiment.federation.trainer, [], []
    train_, mask, mean = trainer.train, Attempt.mask, Inbox.mean
    if comm.rank == 2:
        trainer.train = lambda local, *rest: 1 / local.round and train_(local, *rest)
    Attempt.mask = lambda attempt, y: masked.append(attempt.rank) or mask(attempt, y)
    Inbox.mean = lambda inbox: reports.append(mean(inbox)) or reports[-1]
    federate(experiment.federation, experiment.server)
    return len(masked), [mean.count for mean, _ in reports], [report.aborted for _, report in reports]


def test_example_level_tells_no_loss_and_spends_what_the_accountant_says(run_ranks, tmp_path):
    results = run_ranks(train, 2, table_of(tmp_path, clients=2, rounds=3, privacy=EXAMPLE))
    assert len({result["sha256"] for result in results}) == 1
    history = results[0]["history"]
    assert [m["train_loss"] for m in history] == [None] * 3
    assert [m["participants"] for m in history] == [2] * 3
    q, steps = 10 / 240, 24  # 480 examples over 2 clients, batches of 10
    expected = [epsilon(1.0, q, steps * t, 1e-5) for t in (1, 2, 3)]
    assert [m["epsilon"] for m in history] == pytest.approx(expected, rel=1e-6)


def test_client_level_tells_nothing_and_its_noise_is_that_of_the_sum(run_ranks, tmp_path):
    results = run_ranks(train, 3, table_of(tmp_path, rounds=2, privacy=CLIENT | MASKED))
    assert len({result["sha256"] for result in results}) == 1
    for m in results[0]["history"]:
        assert (m["train_loss"], m["participants"], m["failures"], m["examples"]) == (None, None, None, None)
    quiet = run_ranks(train, 3, table_of(tmp_path, "quiet", 1, privacy=CLIENT | MASKED | {"noise_multiplier": 1e-9}))
    noisy = run_ranks(train, 3, table_of(tmp_path, "noisy", 1, privacy=CLIENT | MASKED))
    noise = noisy[0]["w"] - quiet[0]["w"]
    shares = 3 / 2  # three ranks add, of which two are sure to be in a sum
    assert float(noise.std()) == pytest.approx(0.8 * 0.5 / 4 * shares**0.5, rel=0.03)


@pytest.mark.parametrize("privacy", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_a_resumed_run_has_spent_what_the_uninterrupted_one_has_and_learned_the_same(run_ranks, tmp_path, privacy):
    keep = {"checkpoint": {"every": 1}, "privacy": privacy}
    whole = run_ranks(train, 2, table_of(tmp_path, "whole", 3, **keep))[0]
    run_ranks(train, 2, table_of(tmp_path, "cut", 2, **keep))
    resumed = run_ranks(train, 2, table_of(tmp_path, "cut", 3, "auto", **keep))[0]
    assert [m["epsilon"] for m in resumed["history"]] == [m["epsilon"] for m in whole["history"]]
    assert resumed["sha256"] == whole["sha256"]


def test_a_round_that_was_released_and_lost_counts_twice(run_ranks, tmp_path):
    keep = {"checkpoint": {"every": 1}, "privacy": EXAMPLE}
    whole = run_ranks(train, 2, table_of(tmp_path, "cut", 3, **keep))[0]["history"]
    checkpoints = tmp_path / "runs" / "cut" / "checkpoints"
    (checkpoints / "round-000003").rename(tmp_path / "lost")  # as after a kill -9 before it was on disk
    again = run_ranks(train, 2, table_of(tmp_path, "cut", 3, "auto", **keep))[0]["history"]
    assert again[:2] == whole[:2]
    assert again[2]["epsilon"] > whole[2]["epsilon"]


def test_without_a_checkpoint_too_what_was_spent_is_not_counted_at_another_sigma_or_rate(run_ranks, tmp_path):
    run_ranks(train, 1, table_of(tmp_path, "cut", 2, clients=2, privacy=EXAMPLE))  # checkpoint.every=0
    other = EXAMPLE | {"noise_multiplier": 9.0}
    told = run_ranks(refused, 1, table_of(tmp_path, "cut", 2, "auto", clients=2, privacy=other))[0]
    assert "privacy.noise_multiplier is 1.0 there, 9.0 here" in told
    other = table_of(tmp_path, "cut", 2, "auto", clients=2, privacy=EXAMPLE, client={"batch_size": 5})
    assert "client.batch_size is 10 there, 5 here" in run_ranks(refused, 1, other)[0]
    again = run_ranks(train, 1, table_of(tmp_path, "cut", 2, "auto", clients=2, privacy=EXAMPLE))[0]
    expected = [epsilon(1.0, 10 / 240, 24 * t, 1e-5) for t in (3, 4)]  # two rounds were lost
    assert [m["epsilon"] for m in again["history"]] == pytest.approx(expected, rel=1e-6)


def test_a_finished_client_level_run_that_is_resumed_has_learned(run_ranks, tmp_path):
    keep = {"checkpoint": {"every": 1}, "privacy": CLIENT}
    assert run_ranks(fruitless, 1, table_of(tmp_path, "done", 1, **keep)) == [False]
    assert run_ranks(fruitless, 1, table_of(tmp_path, "done", 1, "auto", **keep)) == [False]


def test_large_clips_and_much_noise_fit_the_ring(run_ranks, tmp_path):
    """Clip 10 and sigma 5 are 50 units of 2^-40 too many for the sampler: fewer bits are taken."""
    loud = CLIENT | {"clip": 10.0, "noise_multiplier": 5.0}
    result = run_ranks(train, 1, table_of(tmp_path, rounds=1, privacy=loud))[0]
    start = run_ranks(train, 1, table_of(tmp_path, "still", 1, privacy=loud | {"noise_multiplier": 1e-9}))[0]
    assert float((result["w"] - start["w"]).std()) == pytest.approx(50 / 4, rel=0.03)


def test_a_run_stops_before_the_round_that_would_break_its_budget(run_ranks, tmp_path):
    q, steps = 10 / 240, 24
    after = [epsilon(1.0, q, steps * t, 1e-5) for t in range(1, 6)]
    target = (after[2] + after[3]) / 2
    table = table_of(tmp_path, clients=2, rounds=5, privacy=EXAMPLE | {"target_epsilon": target})
    results = run_ranks(train, 2, table)
    assert [result["rounds"] for result in results] == [3, 3]
    last = results[0]["history"][-1]
    assert last["test_accuracy"] is not None  # the last round is evaluated, whichever it turns out to be
    assert last["epsilon"] == pytest.approx(after[2], rel=1e-6)


def test_sigma_is_found_for_a_target_and_the_run_uses_it_up(run_ranks, tmp_path):
    privacy = {"level": "client", "target_epsilon": 6.0, "delta": 1e-2, "randomness": "seeded"}
    history = run_ranks(train, 2, table_of(tmp_path, rounds=4, privacy=privacy))[0]["history"]
    assert len(history) == 4
    assert 5.9 < history[-1]["epsilon"] <= 6.0


def test_two_ranks_cannot_aggregate_securely(run_ranks, tmp_path):
    told = run_ranks(refused, 2, table_of(tmp_path, privacy=MASKED))
    assert all("needs 3 ranks or more, not 2" in line for line in told)


def refused(comm, table):
    with pytest.raises(UsageError) as error:
        train(comm, table)
    return str(error.value)


@pytest.mark.parametrize("purpose", ["distribute the model", "resume"])
def test_an_altered_model_ends_the_run_before_anything_masked_leaves_a_rank(run_ranks, tmp_path, purpose):
    """Of w_0 each rank knows what it must be; of a checkpoint's model the ranks compare hashes before they mask."""
    keep = {"checkpoint": {"every": 1}, "privacy": MASKED}
    if purpose == "resume":
        run_ranks(train, 3, table_of(tmp_path, "cut", 1, **keep))
    told = run_ranks(altered, 3, table_of(tmp_path, "cut", 2, "auto", **keep), purpose)
    assert ("initial model" if purpose != "resume" else "the model on rank(s) [1] is not the one on rank 0") in told[1][
        0
    ]
    for reason, sent in told:
        assert reason
        assert "aggregate" not in sent


def altered(comm, table, purpose):
    """Why a run ends whose model somebody alters on its way to rank 1, and what was sent until then.

    Two entries are swapped, which leaves the 24 bits of the round's checksum as they are.
    """
    broadcast = comm.broadcast

    def swapped(x, why):
        x = broadcast(x, why)
        if comm.rank == 1 and why == purpose and x.numel() > 100:
            weak, first = checksum(x), float(x[0])
            x[[0, 50]] = x[[50, 0]]
            assert checksum(x) == weak
            assert float(x[0]) != first
        return x

    comm.broadcast = swapped
    with pytest.raises(CommError) as error:
        train(comm, table)
    return str(error.value), {entry.purpose for entry in comm.ledger.take()}
