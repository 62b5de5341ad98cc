"""What ranks can do in each configuration: the cells of docs/privacy.md's table that no other test shows."""

import pytest
import torch

from fedddp.aggregation.pipeline import checksum
from fedddp.comm import Comm, CommError
from fedddp.federation import federate
from fedddp.secure import SecureExchange
from tests.helpers.distributed import configured, experiment_of, train

RANKS, SIGMA, CLIP = 3, 0.8, 0.5
MASKED = {"secure_aggregation": {"enabled": True}}
CLIENT = {
    **{"level": "client", "noise_multiplier": SIGMA, "clip": CLIP, "delta": 1e-2},
    **{"randomness": "seeded", "accountant": "rdp"},
}
PLAIN, SECURE, DP, BOTH = {}, MASKED, CLIENT, CLIENT | MASKED
every_configuration = pytest.mark.parametrize(
    "privacy", [PLAIN, SECURE, DP, BOTH], ids=["plain", "secure", "client level", "secure and client level"]
)


def table_of(tmp_path, privacy, name="run"):
    return configured(tmp_path, run={"name": name, "rounds": 1}, evaluate={"every": 0}, privacy=privacy)


def exchanged(comm, table, added=0):
    """What this rank put into the round's sum before masks, what came out, its fraction bits, and the model.

    ``added``: an active rank 1 adds so much to 100 coordinates.
    """
    seen = []

    def noted(owner, name):
        original = getattr(owner, name)

        def note(self, buffer, at, *rest):
            if at != 0 and at != "aggregate":  # neither round 0 of a masked sum nor the purpose of a plain one
                return original(self, buffer, at, *rest)
            if comm.rank == 1:
                buffer[:100] += added
            handed = buffer.clone()
            total = original(self, buffer, at, *rest)
            seen.append((handed, total.clone()))  # the caller makes the mean in its memory
            return total

        setattr(owner, name, note)

    masked = table["privacy"].get("secure_aggregation")
    noted(*((SecureExchange, "sum_") if masked else (Comm, "all_reduce")))
    experiment = experiment_of(comm, table)
    server = federate(experiment.federation, experiment.server)
    ((handed, total),) = seen
    return handed, total, getattr(experiment.federation.pipeline.reduce, "fraction_bits", 0), server.w


@every_configuration
def test_all_other_ranks_together_read_what_the_last_one_put_in(run_ranks, tmp_path, privacy):
    """The sum minus their own. Under client-level privacy that has the noise of one rank in it, and no more."""
    found = run_ranks(exchanged, RANKS, table_of(tmp_path, privacy))
    (first, total, bits, w), (second, *_), (third, *_) = found
    if total.dtype == torch.int64:
        assert torch.equal(total - first - second, third)
    else:
        torch.testing.assert_close(total - first - second, third, rtol=1e-4, atol=1e-4)
    if privacy.get("level"):
        quiet = privacy | {"noise_multiplier": 1e-9}
        bare, _, quiet_bits, _ = run_ranks(exchanged, RANKS, table_of(tmp_path, quiet, "quiet"))[2]
        noise = third[: len(w)].double() / 2**bits - bare[: len(w)].double() / 2**quiet_bits
        sure = 2 if "secure_aggregation" in privacy else 3  # so many are sure to be in a sum
        assert float(noise.std()) == pytest.approx(SIGMA * CLIP / sure**0.5, rel=0.03)


@every_configuration
def test_an_active_rank_spoils_the_model_and_nobody_notices(run_ranks, tmp_path, privacy):
    """In a plain sum it stays within the length of all updates together, or the round is aborted."""
    added, moved = (2**52, 1.0) if privacy else (50, 0.05)
    honest = run_ranks(exchanged, RANKS, table_of(tmp_path, privacy, "honest"))
    spoilt = run_ranks(exchanged, RANKS, table_of(tmp_path, privacy, "spoilt"), added)
    assert all(torch.equal(result[-1], spoilt[0][-1]) for result in spoilt)
    assert float((spoilt[0][-1] - honest[0][-1])[:100].abs().min()) > moved


def test_a_plain_sum_longer_than_its_updates_does_not_spoil_the_model(run_ranks, tmp_path):
    start = run_ranks(exchanged, RANKS, table_of(tmp_path, PLAIN, "start") | {"client": {"optimizer": {"lr": 1e-9}}})
    spoilt = run_ranks(exchanged, RANKS, table_of(tmp_path, PLAIN, "spoilt"), 1000)
    assert float((spoilt[0][-1] - start[0][-1]).abs().max()) < 1e-6  # round 1 was aborted


def with_another_model(comm, table):
    """The end of a run in which rank 0 sends rank 1 another w_0, one with the 24 bits of the round's checksum."""
    broadcast = comm.broadcast

    def swapped(x, why):
        x = broadcast(x, why)
        if comm.rank == 1 and why == "distribute the model":
            before = checksum(x)
            x[[0, 50]] = x[[50, 0]]
            assert checksum(x) == before
        return x

    comm.broadcast = swapped
    try:
        return train(comm, table)["rounds"]
    except CommError as error:
        return str(error)


@every_configuration
def test_who_sends_one_rank_another_model(run_ranks, tmp_path, privacy):
    told = run_ranks(with_another_model, RANKS, table_of(tmp_path, privacy))
    if privacy.get("secure_aggregation"):
        assert "another initial model" in told[1]
    else:
        assert told == [1] * RANKS  # unnoticed
