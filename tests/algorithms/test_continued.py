"""Clients that go on where their last round ended, against plain loops of torch.optim that never stop."""

from dataclasses import dataclass, replace

import pytest
import torch

from fedddp.algorithms import Around
from fedddp.config import UsageError
from fedddp.federation import federate
from tests.helpers.reference import HEAVY, WEIGHTS, Run, assert_same, federation, mean
from tests.helpers.support import client_states

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
KEEP = {"optimizer_state": "keep"}
OPTIMIZERS = {
    "momentum": (HEAVY, lambda params: torch.optim.SGD(params, **HEAVY)),
    "nesterov": ({**HEAVY, "nesterov": True}, lambda params: torch.optim.SGD(params, **HEAVY, nesterov=True)),
    "adam": ({"name": "adam", "lr": 0.01}, lambda params: torch.optim.Adam(params, lr=0.01)),
    "adamw": (ADAMW, lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)),
    "adagrad": ({"name": "adagrad", "lr": 0.05}, lambda params: torch.optim.Adagrad(params, lr=0.05)),
}


class OwnOptimizers:
    """torch's optimizers, one a client, each with the state that its client's last round left."""

    def __init__(self, make):
        self._make, self._states, self._now = make, {}, {}

    def of(self, k):
        def resumed(params):
            self._now[k] = self._make(params)
            if k in self._states:
                self._now[k].load_state_dict(self._states[k])
            return self._now[k]

        return resumed

    def keep(self, k):
        self._states[k] = self._now[k].state_dict()


@pytest.mark.parametrize("width", [1, 2], ids=["one by one", "two at once"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_clients_optimizer_is_one_that_never_stopped(tmp_path, name, width):
    """Five rounds of three of six clients: some sit out in between, and their moments stay as they are."""
    keys, make = OPTIMIZERS[name]
    run, own = Run(tmp_path, {"name": "fedavg"}, optimizer=keys, width=width, client=KEEP), OwnOptimizers(make)
    w, seen = run.start, set()
    for t, server in enumerate(run.states()):
        ends = {}
        for k in run.cohorts[t]:
            ends[k], _ = run.trained(k, t, w, optimizer=own.of(k))
            own.keep(k)
        w, seen = mean(ends, WEIGHTS["examples"]), seen | {*run.cohorts[t]}
        assert_same(server.w, w)
    assert sum(map(len, run.cohorts)) > len(seen) + 3  # most took part more than once


def test_reset_is_another_trajectory(tmp_path):
    kept, new = (Run(tmp_path / str(len(c)), {"name": "fedavg"}, optimizer=ADAMW, client=c) for c in (KEEP, {}))
    first, second = zip(*((a.w, b.w) for a, b in zip(kept.states(), new.states(), strict=True)), strict=True)
    assert torch.equal(first[0], second[0])
    assert (first[-1] - second[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("width", [1, 2], ids=["one by one", "two at once"])
def test_of_a_model_with_a_frozen_part_the_moments_of_the_rest_are_kept(tmp_path, width):
    """The optimizer sees shorter vectors: the frozen parameters are not among them."""
    algorithm = {"name": "personal", "frozen": ["0.*"]}
    run = Run(tmp_path, algorithm, optimizer=ADAMW, width=width, client=KEEP)
    own, w = OwnOptimizers(OPTIMIZERS["adamw"][1]), run.start
    for t, server in enumerate(run.states()):
        ends = {}
        for k in run.cohorts[t]:
            ends[k], _ = run.trained(k, t, w, optimizer=own.of(k), only=(2, 3))
            own.keep(k)
        w = mean(ends, WEIGHTS["examples"])
        assert_same(server.w, w)
    assert (server.w - run.start).abs().max() > 1e-2


@dataclass(frozen=True)
class Failing(Around):
    """A client's upload is no number in one round."""

    client: int
    round: int

    def client_update(self, server, client, local):
        update, state, result = super().client_update(server, client, local)
        if local.round == self.round and self.client in local.ids:
            update.vectors["delta"][list(local.ids).index(self.client)] = torch.nan
        return update, state, result


def test_a_client_that_fails_keeps_the_moments_that_it_had(tmp_path):
    f, server = federation(tmp_path, {"name": "fedavg"}, optimizer=ADAMW, client=KEEP)
    first, others = f.sampler.cohort(0).ids, f.sampler.cohort(1).ids
    (k,) = [k for k in first if k in others][:1]
    f = replace(f, algorithm=Failing(f.algorithm, k, 1))
    server = federate(f.until(1), server)
    before = client_states(f, (k,), server)
    assert before["client.optimizer.mean"].abs().max() > 0
    server = federate(f.until(2), server)
    after = client_states(f, (k,), server)
    assert all(torch.equal(after[name], vectors) for name, vectors in before.items())


@pytest.mark.parametrize("level", [{}, {"level": "example", "clip": 1.0, "noise_multiplier": 0.5}])
def test_what_a_client_remembers_is_two_vectors_and_a_count(tmp_path, level):
    f, server = federation(
        tmp_path, {"name": "fedavg"}, optimizer=ADAMW, client=KEEP, privacy={**level, "randomness": "seeded"}
    )
    server = federate(f.until(1), server)
    (k, *_) = f.sampler.cohort(0).ids
    state = client_states(f, (k,), server)
    whole = (1, server.num_trainable)
    assert {n.rpartition(".")[2]: v.shape for n, v in state.items()} == {"step": (1, 1), "mean": whole, "square": whole}
    assert float(state["client.optimizer.step"]) > 1
    assert all(v.abs().max() > 0 for v in state.values())


def test_a_client_level_of_privacy_asks_for_a_folder_of_each_ranks_own(tmp_path):
    client_level = {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "randomness": "seeded"}
    with pytest.raises(UsageError) as refused:
        federation(tmp_path, {"name": "fedavg"}, optimizer=ADAMW, client=KEEP, privacy=client_level)
    assert refused.value.code == "clients-remember"
