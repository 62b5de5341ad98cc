"""Clients that go on where their last round ended, against plain loops of torch.optim that never stop."""

from dataclasses import dataclass, replace
from itertools import chain

import pytest
import torch

from fedddp.algorithms import Around
from fedddp.config import UsageError
from fedddp.federation import federate
from tests.helpers.reference import CLIENTS, HEAVY, SIZES, WEIGHTS, Run, assert_same, federation, mean
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


# -- the order of the data ------------------------------------------------------------------------------------------

H = 3
CONTINUE = {"local_epochs": 1, "local_steps": H, "order": "continue"}


def seen(f, k, done, steps):
    """The examples of client k's batches in ``steps`` steps after ``done``, as the trainer plans them."""
    local = f.trainer.on((k,), done // 2).after(torch.tensor([done]))  # the round's number does not matter
    order = f.trainer.plan(local)
    return [index[mask].tolist() for index, mask in zip(order.index[0, :steps], order.mask[0, :steps], strict=True)]


def test_passes_over_a_clients_examples_are_whole_whatever_the_number_of_steps(tmp_path):
    f, _ = federation(tmp_path, {"name": "fedavg"}, client=CONTINUE)
    batches = [batch for done in range(0, 30, H) for batch in seen(f, 0, done, H)]  # 23 examples: 5 batches of 5
    passes = [[*chain(*batches[first : first + 5])] for first in range(0, 30, 5)]
    assert all(sorted(one) == list(range(SIZES[0])) for one in passes)
    assert len({tuple(one) for one in passes}) == 6  # each in an order of its own
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3] * 6


def test_a_client_goes_on_where_it_was_though_it_sat_out(tmp_path):
    f, server = federation(tmp_path, {"name": "fedavg"}, client=CONTINUE)
    server = federate(f, server)
    part = [sum(k in f.sampler.cohort(t).ids for t in range(5)) for k in CLIENTS]
    assert len(set(part)) > 1
    assert client_states(f, CLIENTS, server)["client.steps"].flatten().tolist() == [H * times for times in part]


@pytest.mark.parametrize("width", [1, 2], ids=["one by one", "two at once"])
def test_steps_in_two_rounds_are_twice_the_steps_in_one(tmp_path, width):
    """Of a single client the rounds' borders leave no trace: data, moments and learning rates go on."""
    ends = []
    for rounds, steps in ((6, 2), (2, 6), (1, 12)):
        client = {
            **CONTINUE,
            **KEEP,
            "local_steps": steps,
            "schedule": {"name": "cosine", "unit": "steps", "warmup": 4},
        }
        size = {"cohort": {"size": 1}, "run": {"rounds": rounds}}
        where = tmp_path / str(rounds)
        f, server = federation(where, {"name": "fedavg"}, optimizer=ADAMW, width=width, client=client, **size)
        f = replace(f, sampler=Only(f.sampler))
        ends.append(federate(f, server).w)
        moved = (ends[-1] - server.w).abs().max()
    assert moved > 1e-2
    assert_same(ends[0], ends[2])
    assert_same(ends[1], ends[2])


class Only:
    """Client 0 alone, in every round."""

    def __init__(self, sampler):
        self._sampler = sampler

    def cohort(self, t):
        return replace(self._sampler.cohort(t), ids=(0,))

    def chosen(self, cohort, w):
        return cohort


# -- learning rates -------------------------------------------------------------------------------------------------


class Rated(torch.optim.SGD):
    """A rate of its own in each step."""

    def __init__(self, params, rates):
        super().__init__(params, **HEAVY)
        self._rates = iter(rates)

    def step(self):
        self.param_groups[0]["lr"] = next(self._rates)
        super().step()


@pytest.mark.parametrize("width", [1, 2], ids=["one by one", "two at once"])
def test_with_the_unit_steps_the_rate_changes_within_a_round(tmp_path, width):
    schedule = {"name": "exponential", "gamma": 0.9, "unit": "steps", "warmup": 4}
    keys = {"local_epochs": 1, "local_steps": H, "schedule": schedule}
    run = Run(tmp_path, {"name": "fedavg"}, optimizer=HEAVY, width=width, client=keys)
    w = run.start
    for t, server in enumerate(run.states()):
        rates = [HEAVY["lr"] * ((s + 1) / 5 if s < 4 else 0.9 ** (s - 4)) for s in range(t * H, t * H + H)]
        ends = {k: run.trained(k, t, w, steps=H, optimizer=lambda p, r=rates: Rated(p, r))[0] for k in run.cohorts[t]}
        w = mean(ends, WEIGHTS["examples"])
        assert_same(server.w, w)
