"""Streaming DiLoCo against a plain loop, its special cases, and what it cannot be combined with."""

import pytest
import torch

from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.types import Mean
from tests.helpers.reference import (
    CLIENTS,
    ROUNDS,
    SIZES,
    WEIGHTS,
    Run,
    assert_same,
    federation,
    mean,
    normalised,
)
from tests.helpers.support import client_states

OUTER = {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}
H = 3
CLIENT = {"local_epochs": 1, "local_steps": H}


def algorithm(**keys):
    return {"name": "streaming_diloco", "server_optimizer": OUTER, **keys}


def reference(run, fragments, delay, alpha, p):
    """Algorithm 2 of Douillard et al. 2025 with a delay of rounds, of clients of which some sit out."""
    length = -(-p // fragments)
    parts = [slice(i * length, min(p, (i + 1) * length)) for i in range(fragments)]
    w, v = run.start.clone(), torch.zeros(p, dtype=torch.float64)
    own, moved, waiting = {}, {}, {}
    for t, cohort in enumerate(run.cohorts):
        ends, buffers = {}, {}
        for k in cohort:
            if k not in own:  # its first round
                own[k], moved[k] = w[:p].clone(), set()
            for i in moved.pop(k, ()):
                own[k][parts[i]] = alpha * own[k][parts[i]] + (1 - alpha) * w[parts[i]]
            end = run.trained(k, t, torch.cat([own[k], w[p:]]), steps=H)[0]
            own[k], buffers[k] = end[:p].clone(), end[p:]
            ends[k] = end[parts[t % fragments]]
        waiting[t + delay] = t % fragments, mean(ends, WEIGHTS["examples"]) - w[parts[t % fragments]]
        w[p:] = mean(buffers, WEIGHTS["examples"])
        if t in waiting:
            i, delta = waiting.pop(t)
            v[parts[i]] = 0.9 * v[parts[i]] + delta
            w[parts[i]] += 0.7 * (delta + 0.9 * v[parts[i]])
            for k in CLIENTS:
                moved.setdefault(k, set()).add(i)
        yield w.clone()


@pytest.mark.parametrize("width", [1, 2], ids=["one by one", "two at once"])
@pytest.mark.parametrize(("fragments", "delay", "alpha"), [(1, 0, 0.0), (3, 0, 0.0), (4, 2, 0.5), (2, 1, 0.25)])
def test_it_is_the_papers_algorithm(tmp_path, fragments, delay, alpha, width):
    keys = algorithm(fragments=fragments, delay=delay, alpha=alpha)
    run = Run(tmp_path, keys, width=width, client=CLIENT, run={"rounds": ROUNDS})
    expected = reference(run, fragments, delay, alpha, run.server.num_trainable)
    for server, w in zip(run.states(), expected, strict=True):
        assert_same(server.w, w)
    assert (run.server.w - run.start).abs().max() > 1e-2


def test_buffers_are_averaged_in_every_round(tmp_path):
    run = Run(tmp_path, algorithm(fragments=3, delay=1, alpha=0.5), make=normalised, client=CLIENT)
    expected = reference(run, 3, 1, 0.5, run.server.num_trainable)
    for server, w in zip(run.states(), expected, strict=True):
        assert_same(server.w, w)


def test_one_fragment_is_diloco(tmp_path):
    stream = Run(tmp_path / "a", algorithm(fragments=1), client=CLIENT)
    whole = Run(tmp_path / "b", {"name": "fedavg", "server_optimizer": OUTER}, client=CLIENT)
    for a, b in zip(stream.states(), whole.states(), strict=True):
        assert_same(a.w, b.w)


def test_with_alpha_1_clients_stay_with_their_own(tmp_path):
    """No communication between clients: each goes on from where it ended."""
    run = Run(tmp_path, algorithm(fragments=2, alpha=1.0), client=CLIENT)
    begin = [run.start, *(server.w for server in run.states())]
    kept = client_states(run.f, CLIENTS, run.server)["streaming.w"]
    own = {}
    for t, cohort in enumerate(run.cohorts):
        own |= {k: run.trained(k, t, own.get(k, begin[t]), steps=H)[0] for k in cohort}
    for k, w in own.items():
        assert_same(kept[k], w)


def test_a_round_moves_one_fragment_and_sends_no_more(tmp_path):
    f, server = federation(tmp_path, algorithm(fragments=4), client=CLIENT)
    length = -(-server.num_trainable // 4)
    assert f.algorithm.vectors(server.spec) == {"delta": length}
    for t in range(4):
        before, server = server, federate(f.until(t + 1), server)
        moved = (server.w != before.w).nonzero().flatten()
        assert moved.min() >= t * length
        assert moved.max() < (t + 1) * length


def test_a_round_that_brings_nothing_delays_what_was_due_by_one(tmp_path):
    f, server = federation(tmp_path, algorithm(fragments=4, delay=1), client=CLIENT)
    first = federate(f.until(1), server)
    assert torch.equal(first.w, server.w)
    aborted = first.unchanged()
    after = f.algorithm.server_update(aborted, zero(f, aborted), f.sampler.cohort(2))
    straight = f.algorithm.server_update(first, zero(f, first), f.sampler.cohort(1))
    assert torch.equal(after.w, straight.w)
    assert not torch.equal(after.w, first.w)


def zero(f, server):
    vectors = {name: server.w.new_zeros(d) for name, d in f.algorithm.vectors(server.spec).items()}
    return Mean(vectors, 1.0, 1, sum(SIZES))


def test_an_inner_optimizer_is_kept_beside_it(tmp_path):
    keys = {**CLIENT, "order": "continue", "optimizer_state": "keep"}
    f, server = federation(tmp_path, algorithm(), optimizer={"name": "adamw", "lr": 0.01}, client=keys)
    state = client_states(f, f.sampler.cohort(0).ids, federate(f, server))
    assert state.keys() >= {"streaming.w", "client.optimizer.mean", "client.steps"}


@pytest.mark.parametrize("keys", [{"fragments": 2, "delay": 2}, {"fragments": 1, "delay": 1}])
def test_a_delay_of_a_whole_turn_is_refused(tmp_path, keys):
    with pytest.raises(UsageError, match="set delay below fragments"):
        federation(tmp_path, algorithm(**keys), client=CLIENT)


@pytest.mark.parametrize(
    ("aggregation", "code"),
    [
        ({"compression": {"name": "top_k"}}, "algorithm-late"),
        ({"rule": {"name": "centered_clipping", "momentum": 0.0}}, "rule-fragments"),
    ],
)
def test_what_would_mix_fragments_is_refused(tmp_path, aggregation, code):
    with pytest.raises(UsageError) as refused:
        federation(tmp_path, algorithm(), client=CLIENT, aggregation=aggregation)
    assert refused.value.code == code


def test_int8_rounds_a_fragment(tmp_path):
    ends = []
    for name in ("none", "int8"):
        f, server = federation(
            tmp_path / name, algorithm(fragments=2), client=CLIENT, aggregation={"compression": {"name": name}}
        )
        ends.append(federate(f, server).w)
    assert 0 < (ends[1] - ends[0]).abs().max() < 0.05
