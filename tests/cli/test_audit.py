"""fedddp audit: a sound mechanism is not refuted, a broken one is, through the program's own path."""

import json

import pytest
import torch

from fedddp.algorithms.client_level import ClientLevel
from fedddp.cli.audit import audited, prepared
from fedddp.clients.private import trainer as private_trainer
from fedddp.clients.private.trainer import PrivateTrainer
from fedddp.comm import Comm, Place
from fedddp.config import parse
from fedddp.privacy import Randomness, discrete_gaussian, epsilon
from fedddp.types import Update
from tests.helpers.commands import command

main = command("audit")
pytestmark = pytest.mark.slow

WORDS = (
    "--data.name=synthetic",
    "--data.args={num_train = 200, num_test = 10, num_classes = 4, shape = [1, 20, 20]}",
    "--model.name=logistic",
    "--run.threads=1",
    "--run.device=cpu",
    "--privacy.randomness=seeded",
    "--privacy.noise_multiplier=2",
    "--run.rounds=2",
)
CLIENT = (*WORDS, "--privacy.level=client", "--data.partition.num_clients=50")
EXAMPLE = (*WORDS, "--privacy.level=example", "--client.batch_size=0", "--data.partition.num_clients=1")


def found(words, most=200):
    return audited(prepared(parse(words).layers, Place()), Comm.alone(), most)


@pytest.mark.parametrize(("words", "runs"), [(CLIENT, 4), (EXAMPLE, 1)])
def test_a_sound_mechanism_is_not_refuted_and_one_without_noise_is(words, runs):
    audit = found(words)
    assert audit.holds
    assert audit.powerful
    assert (audit.canaries, audit.runs) == (200, runs)
    assert 0 < audit.rows[0].found < audit.rows[0].claimed == epsilon(2.0, 1.0, 2, 1e-5)


def a_third_of_the_noise_of_clients(monkeypatch):
    full = ClientLevel.noise_std
    monkeypatch.setattr(ClientLevel, "noise_std", lambda *a: {name: std / 3 for name, std in full(*a).items()})


def no_clip(monkeypatch):
    monkeypatch.setattr(
        "fedddp.algorithms.client_level.clipped", lambda vectors, clip: (dict(vectors), torch.tensor(True))
    )


def the_same_noise_each_round(monkeypatch):
    monkeypatch.setattr(
        "fedddp.setup.levels.client.discrete_gaussian",
        lambda n, std, stream: discrete_gaussian(n, std, Randomness.seeded(0, "again")),
    )


def weights_by_examples(monkeypatch):
    uniform = ClientLevel.client_update

    def weighted(self, server, client, local):
        update, state, result = uniform(self, server, client, local)
        return Update(update.vectors, local.num_examples), state, result

    monkeypatch.setattr(ClientLevel, "client_update", weighted)


@pytest.mark.parametrize(
    "breakage", [a_third_of_the_noise_of_clients, no_clip, the_same_noise_each_round, weights_by_examples]
)
def test_a_broken_client_level_is_refuted(breakage, monkeypatch):
    breakage(monkeypatch)
    assert not found(CLIENT).holds


CYCLIC = (*CLIENT, "--cohort.size=10", "--run.rounds=10", "--privacy.noise_multiplier=1.5")


@pytest.mark.parametrize("mechanism", ["tree", "banded_mf"])
@pytest.mark.parametrize("breakage", [None, a_third_of_the_noise_of_clients, no_clip])
def test_correlated_noise_is_whitened_and_audited(mechanism, breakage, monkeypatch):
    if breakage:
        breakage(monkeypatch)
    audit = found([*CYCLIC, f"--privacy.mechanism={mechanism}"])
    assert audit.powerful
    assert audit.holds == (breakage is None)
    assert audit.rows[0].found > 0.2


def a_third_of_the_noise(monkeypatch):
    private = PrivateTrainer._make_private

    def weaker(self, total, client):
        sigma, self._sigma = self._sigma, self._sigma / 3
        private(self, total, client)
        self._sigma = sigma

    monkeypatch.setattr(PrivateTrainer, "_make_private", weaker)


def no_clip_of_gradients(monkeypatch):
    for module in ("ghost", "oracle"):
        monkeypatch.setattr(
            f"fedddp.clients.private.{module}.clipping", lambda norm, mask, clip, dtype: (mask.to(dtype), norm >= 0)
        )


def the_same_noise_each_step(monkeypatch):
    monkeypatch.setattr(
        Randomness,
        "normal",
        lambda self, n, dtype: torch.randn(n, generator=torch.Generator().manual_seed(1)).to(dtype),
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])  # the second is by torch.func
@pytest.mark.parametrize("breakage", [a_third_of_the_noise, no_clip_of_gradients, the_same_noise_each_step])
def test_a_broken_example_level_is_refuted(breakage, precision, monkeypatch):
    breakage(monkeypatch)
    assert not found([*EXAMPLE, f"--client.precision={precision}"]).holds


def test_batches_that_take_everything_are_refuted(monkeypatch):
    words = [*EXAMPLE, "--client.batch_size=20", "--privacy.noise_multiplier=1", "--run.rounds=1"]
    assert found(words).holds
    monkeypatch.setattr(private_trainer._Client, "draw", lambda self, t: torch.arange(self.size))
    assert not found(words).holds


def test_what_was_found_is_printed_and_written(tmp_path, capsys, monkeypatch):
    words = [*EXAMPLE, f"--run.dir={tmp_path / 'runs'}", f"--out={tmp_path / 'audit.json'}"]
    assert main([*words, "--canaries=150"]) == 0
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["canaries"] == 150
    assert [row["delta"] for row in written["rows"]] == [1e-5, 0.01, 0.1, 0.3, 0.6, 0.9]
    assert "no contradiction" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    a_third_of_the_noise(monkeypatch)
    assert main(words) == 1
    assert "the guarantee does not hold" in capsys.readouterr().out


def test_no_account_is_charged_for_canaries(tmp_path):
    account = ["--privacy.account.dir", str(tmp_path / "account"), "--privacy.account.key", str(tmp_path / "none.key")]
    assert main([*EXAMPLE, *account, "--privacy.account.epsilon=0.01", "--canaries=150"]) == 0
    assert not list(tmp_path.iterdir())


def test_an_audit_without_power_says_so(capsys):
    assert main([*EXAMPLE, "--canaries=100", "--privacy.noise_multiplier=0.05"]) == 1
    assert "no power" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([*WORDS[:-2], "--run.rounds=1"], "privacy.level"),
        ([*CLIENT, "--privacy.noise_multiplier=0"], "privacy.noise_multiplier"),
        ([*CLIENT, "--privacy.adaptive_clip.enabled=true"], "privacy.adaptive_clip.enabled"),
        (
            [
                *CLIENT,
                "--data.partition.num_clients=2000",
                "--data.args={num_train = 3000, num_classes = 2, shape = [1, 8, 8]}",
            ],
            "num_clients",
        ),
        ([*CLIENT, "--attack.name=sign_flip"], "attack.num_clients"),
    ],
)
def test_what_cannot_be_audited_is_refused(words, key, capsys):
    assert main(words) == 2
    assert key in capsys.readouterr().err


def on_rank(comm, words):
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    return audited(prepared(parse(words).layers, place), comm, 200)


@pytest.mark.parametrize("words", [CLIENT, [*EXAMPLE, "--data.partition.num_clients=4"]])
def test_several_ranks_audit_together(run_ranks, words):
    (alone,) = run_ranks(on_rank, 1, words)
    first, second = run_ranks(on_rank, 2, words)
    assert first == second
    assert first.holds
    assert first.powerful
    assert [(row.claimed, row.without_noise) for row in first.rows] == [
        (row.claimed, row.without_noise) for row in alone.rows
    ]
