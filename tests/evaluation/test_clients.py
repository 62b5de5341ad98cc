"""Held-out examples of clients, the evaluation of what they would deploy, and what is told of it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedddp.attacks import Adversary, LabelFlip
from fedddp.comm import Place
from fedddp.comm.guard import Guard
from fedddp.config import UsageError, build
from fedddp.data import PARTITIONS, Partition
from fedddp.data.partition import IID, Overlapping, Shards
from fedddp.data.parts import Divided
from fedddp.evaluation.clients import Spread
from fedddp.evaluation.server import BATCH, MOST_OUTPUTS, at_once
from fedddp.federation import federate
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task
from fedddp.telemetry import SideWork
from tests.helpers.support import Recorder, assemble, client_states, few_digits

pytestmark = pytest.mark.slow

LABELS = np.random.default_rng(0).integers(0, 10, 500)


def owned(partition):
    return [set(partition.indices(k).tolist()) for k in range(partition.num_clients)]


@pytest.mark.parametrize("name", [n for n in PARTITIONS if n not in ("overlapping", "natural", "file")])
def test_each_client_holds_a_fraction_of_its_own_out(name):
    whole = PARTITIONS[name](num_clients=12).split(LABELS, 0)
    used, held = whole.held_out(0.2, 7)
    for all_of_them, trained_on, apart in zip(owned(whole), owned(used), owned(held), strict=True):
        assert trained_on | apart == all_of_them
        assert not trained_on & apart
        n = len(all_of_them)
        assert len(apart) == (max(1, round(0.2 * n)) if n > 1 else 0)
    assert owned(whole.held_out(0.2, 7)[1]) == owned(held)
    assert owned(whole.held_out(0.2, 8)[1]) != owned(held)


def test_the_fraction_is_drawn_at_random_not_the_end_of_a_sorted_range():
    whole = Shards(num_clients=5).split(LABELS, 0)  # each client's range is one label, then another
    _, held = whole.held_out(0.3, 0)
    many = whole.counts(LABELS, 10) > 20
    assert (many.sum(axis=1) > 1).any()
    assert (held.counts(LABELS, 10)[many] > 0).all()


def test_few_examples():
    used, held = Partition.dealt(np.arange(6), np.array([0, 1, 2, 3])).held_out(0.9, 0)
    assert used.sizes.tolist() == [0, 1, 1, 1]
    assert held.sizes.tolist() == [0, 0, 1, 2]


def test_clients_whose_examples_overlap_cannot_hold_any_out():
    with pytest.raises(ValueError, match=r"holdout=0\.1: clients' examples overlap here"):
        Overlapping(num_clients=50, size=20).split(LABELS, 0).held_out(0.1, 0)
    Overlapping(num_clients=20, size=20).split(LABELS, 0).held_out(0.1, 0)  # there is enough for all


MANIFEST: Any = None  # of the division; nothing that is asked for here


def test_a_rank_that_sees_its_own_clients_finds_what_others_find_for_them():
    whole = IID(num_clients=5).split(LABELS[:43], 1)
    _, held = whole.held_out(0.3, 2)
    for rank in range(2):
        own = np.arange(rank, 5, 2)
        rows = np.concatenate([whole.indices(k) for k in own])  # as they lie in the files of this rank's clients
        starts = np.full(5, len(rows))
        starts[own] = np.cumsum(whole.sizes[own]) - whole.sizes[own]
        _, mine = Divided(np.arange(len(rows)), starts, whole.sizes, public=MANIFEST).held_out(0.3, 2)
        assert mine.sizes.tolist() == held.sizes.tolist()
        for k in own:
            assert rows[mine.indices(k)].tolist() == held.indices(k).tolist()


SIZES = (10, 20, 1, 14)
SCORED = {"every": 0, "holdout": 0.25, "personal_every": 1}


def small(folder, sizes=SIZES, sinks=(), rounds=2, evaluate=SCORED, **algorithm):
    model = {"name": "mlp", "hidden": 6}
    sections = {"evaluate": evaluate, "run": {"rounds": rounds}, "model": model, "algorithm": algorithm}
    return assemble(folder, few_digits(sum(sizes)), sizes, sinks=sinks, **sections)


def test_what_is_held_out_is_not_trained_on_and_does_not_count(tmp_path):
    """The model of a run in which these examples do not exist: sizes, weights and batches are of the others."""
    f, start = small(tmp_path / "a")
    held = [max(1, round(n / 4)) if n > 1 else 0 for n in SIZES]
    assert (
        f.trainer.data.sizes.tolist() == f.pipeline.sizes.tolist() == [n - h for n, h in zip(SIZES, held, strict=True)]
    )
    server = federate(f, start)
    x, y = few_digits(sum(SIZES)).train.x, few_digits(sum(SIZES)).train.y
    used, apart = Partition.dealt(np.arange(sum(SIZES)), np.array(SIZES)).held_out(0.25, 0)
    x[np.concatenate([apart.indices(k) for k in range(4)])] = 0  # what they show makes no difference
    for k in range(4):
        assert torch.equal(f.trainer.data.examples(k)[1], y[used.indices(k)])
        assert torch.equal(f.trainer.data.examples(k)[0], x[used.indices(k)])
    g, start = small(tmp_path / "b")
    g.trainer.data._x[apart.of(np.arange(4))] = 255
    g.evaluation.clients._every = 0
    assert g.trainer.data.placement == "shared"
    assert torch.equal(federate(g, start).w, server.w)


def accuracy(f, w, k):
    x, y = f.evaluation.clients._held.examples(k)
    module = f.trainer._task.model(0)
    torch.nn.utils.vector_to_parameters(w, module.parameters())
    return float((module(f.trainer.data.normalize(x)).argmax(dim=1) == y).double().mean())


@pytest.mark.parametrize("placement", ["shared", "home"])
@pytest.mark.parametrize("attack", ["label_flip", "backdoor", "sign_flip", "ipm"])
def test_benign_clients_are_scored_on_examples_that_no_attack_has_touched(tmp_path, attack, placement):
    """Held out are the same ones as without an attack; a Byzantine client trains on what it keeps of its own."""
    data = {"name": "synthetic", "args": {"num_train": 50, "num_test": 1}, "placement": placement}
    data["partition"] = {"num_clients": 4}
    sections = {"evaluate": SCORED, "model": {"name": "logistic"}, "run": {"rounds": 1}, "data": data}
    sizes, keys = (10, 20, 6, 9), {"share": 1.0} if attack == "backdoor" else {}
    clean, _ = assemble(tmp_path / "clean", few_digits(45), sizes, **sections)
    sink, keys = Recorder(), {"name": attack, "num_clients": 2, **keys}
    f, start = assemble(tmp_path / "run", few_digits(45), sizes, attack=keys, sinks=[sink], **sections)
    byzantine = f.algorithm.adversary.clients
    held, before = f.evaluation.clients._held, clean.evaluation.clients._held
    assert held.sizes.tolist() == [0 if k in byzantine else n for k, n in enumerate(before.sizes.tolist())]
    assert f.trainer.data.sizes.tolist() == clean.trainer.data.sizes.tolist()
    for k in range(4):
        (x, y), (own, labels) = f.trainer.data.examples(k), clean.trainer.data.examples(k)
        if k not in byzantine:
            assert all(torch.equal(a, b) for a, b in zip(held.examples(k), before.examples(k), strict=True))
        assert torch.equal(x, own) == (k not in byzantine or attack != "backdoor")
        assert torch.equal(y, labels) == (k not in byzantine or attack not in ("backdoor", "label_flip"))
    federate(f, start)
    (record,) = sink.records
    assert record.clients.ids == tuple(sorted({0, 1, 2, 3} - byzantine))
    assert record.metrics["personal_clients"] == 2


def test_if_only_byzantine_clients_could_be_scored_it_is_refused(tmp_path):
    for num_clients in (4, 2):  # of two, the others have one example each, to train on
        byzantine = Adversary.drawn(LabelFlip(num_clients), 4, 0).clients
        sizes = [10 if k in byzantine else 1 for k in range(4)]
        attack = {"name": "label_flip", "num_clients": num_clients}
        with pytest.raises(UsageError) as refused:
            assemble(tmp_path, few_digits(60), sizes, attack=attack, evaluate=SCORED, model={"name": "logistic"})
        assert refused.value.code == "personal-byzantine"


@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedper", "ifca"])
def test_scores_are_of_each_clients_model_on_its_own_examples(tmp_path, name):
    f, start = small(tmp_path, name=name, rounds=3)
    server = federate(f, start)
    scores = f.evaluation.clients.score(server, f.store)
    assert scores.ids == (0, 1, 3)  # client 2 has one example, to train on
    own = [f.algorithm.personal_params(server, client_states(f, (k,), server)).view(-1) for k in scores.ids]
    assert scores.personal.accuracy.tolist() == [accuracy(f, w, k) for w, k in zip(own, scores.ids, strict=True)]
    assert scores.global_model.accuracy.tolist() == [accuracy(f, server.w, k) for k in scores.ids]
    assert (scores.personal.accuracy.tolist() == scores.global_model.accuracy.tolist()) or name != "fedavg"


def test_they_are_scored_with_what_the_round_left_them(tmp_path):
    """Also in the round that first gives them a state: a store commits after the evaluation."""
    sink = Recorder()
    f, start = small(tmp_path, name="ditto", rounds=1, sinks=[sink])
    server = federate(f, start)
    (record,) = sink.records
    assert torch.equal(record.clients.personal.accuracy, f.evaluation.clients.score(server, f.store).personal.accuracy)
    states = {"v": torch.ones(2, len(server.w))}
    f.store.put((0, 7), states, [1])
    assert torch.equal(f.store.latest((7,), f.algorithm.init_client(server))["v"], states["v"][:1])
    assert not torch.equal(client_states(f, (7,), server)["v"], states["v"][:1])


def test_mean_deviation_and_the_worst_tenth():
    spread = Spread(torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.2], dtype=torch.float64))
    assert spread.mean == pytest.approx(5.2 / 11)
    assert spread.std == pytest.approx(np.std(spread.accuracy.numpy()))
    assert spread.worst10 == pytest.approx(0.15)  # two of eleven
    assert Spread(torch.tensor([0.4, 0.6])).worst10 == pytest.approx(0.4)


def test_jains_index_is_1_for_equals_and_1_over_c_for_one_alone():
    assert Spread(torch.full((4,), 0.3)).jain == pytest.approx(1)
    assert Spread(torch.tensor([0.0, 0.0, 0.8, 0.0])).jain == pytest.approx(1 / 4)
    assert Spread(torch.tensor([0.2, 0.6])).jain == pytest.approx(0.8**2 / (2 * 0.4))
    assert Spread(torch.zeros(3)).jain == 1


def test_a_large_vocabulary_is_scored_few_examples_at_a_time():
    task = Task(lambda: nn.Linear(1, 1), 2**20)
    assert at_once(task, torch.zeros(500, dtype=torch.long)) == MOST_OUTPUTS // 2**20
    assert at_once(replace(task, num_classes=10), torch.zeros(500, dtype=torch.long)) == BATCH


def test_how_they_are_told(tmp_path):
    """By names that cannot be taken for the accuracy on the test set; in the rounds that found them, and at the end."""
    sink = Recorder()
    evaluate = {"every": 2, "holdout": 0.25, "personal_every": 2}
    f, start = small(tmp_path, name="ditto", rounds=3, evaluate=evaluate, sinks=[sink])
    federate(f, start)
    told = [record.metrics for record in sink.records]
    names = {f"{w}_accuracy_{k}" for w in ("personal", "global_on_clients") for k in ("mean", "std", "worst10", "jain")}
    assert [names <= m.keys() for m in told] == [False, True, True]
    assert [len([k for k in m if "personal" in k]) for m in told] == [0, 5, 5]
    assert told[1]["personal_clients"] == 3
    last = sink.records[2].clients
    for which, spread in (("personal", last.personal), ("global_on_clients", last.global_model)):
        assert told[2][f"{which}_accuracy_mean"] == spread.mean
        assert told[2][f"{which}_accuracy_worst10"] == spread.worst10
    summary = f.telemetry.summary()
    assert {k: summary[f"final_{k}"] for k in names} == {k: told[2][k] for k in names}
    json.dumps(summary)
    g, start = small(tmp_path / "off", evaluate={"every": 0})
    federate(g, start)
    assert not [k for k in (*g.telemetry.history[-1], *g.telemetry.summary()) if "personal" in k or "clients_acc" in k]


def test_a_large_population_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddp.evaluation.clients.MOST_CLIENTS", 2)
    seen = set()
    for seed in range(4):
        f, start = assemble(
            tmp_path / str(seed), few_digits(45), SIZES, model={"name": "logistic"}, evaluate=SCORED, run={"seed": seed}
        )
        scores = f.evaluation.clients.score(start, f.store)
        assert scores.ids == f.evaluation.clients.score(start, f.store).ids
        assert len(scores.ids) == 2
        seen.add(scores.ids)
    assert len(seen) > 1


def configured(**sections):
    return resolve(build({"data": {"partition": {"num_clients": 4}}}, sections), Place())


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"evaluate": {"personal_every": 1}}, "personal-holdout"),
        (
            {
                "evaluate": {"personal_every": 2, "holdout": 0.1},
                "privacy": {"level": "client", "noise_multiplier": 1.0},
            },
            "personal-private",
        ),
        (
            {
                "evaluate": {"personal_every": 2, "holdout": 0.1},
                "privacy": {"secure_aggregation": {"enabled": True}},
            },
            "personal-private",
        ),
    ],
)
def test_refused_where_it_cannot_be_kept(sections, code):
    with pytest.raises(UsageError) as caught:
        configured(**sections)
    assert (caught.value.key, caught.value.code) == ("evaluate.personal_every", code)


def test_nobody_with_two_examples(tmp_path):
    with pytest.raises(UsageError, match=r"holdout=0\.25: no client has two examples"):
        small(tmp_path, sizes=(1, 1, 0))


def test_the_guard_lets_two_figures_a_client_through():
    guard = Guard.of(clients=30)
    guard.check("all_reduce", "float64", (2, 30), 480, "evaluate clients")
    for dtype, shape, size in (("float64", (2, 31), 496), ("float32", (2, 30), 240)):
        with pytest.raises(RuntimeError, match="evaluate clients"):
            guard.check("all_reduce", dtype, shape, size, "evaluate clients")
    assert "evaluate clients" not in Guard.of(secure=True, clients=30).allowed


def test_tensorboard_has_them_in_a_group_of_their_own(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fedddp.telemetry.tensorboard import TensorBoard

    sink = Recorder()
    f, start = small(tmp_path / "run", name="ditto", rounds=1, sinks=[sink])
    federate(f, start)
    owners = Partition.dealt(np.arange(45), np.array(SIZES)).excerpt(few_digits(45).train.y.numpy(), 10)
    pages = TensorBoard(tmp_path / "pages", 1, "", {}, owners, SideWork(), history=[{"round": 1}])
    pages.round(sink.records[0])
    pages.close(None)
    events = EventAccumulator(str(tmp_path / "pages"))
    events.Reload()
    scalars = events.Scalars("2 clients/accuracy personal, worst tenth")
    assert [s.value for s in scalars] == [pytest.approx(sink.records[0].clients.personal.worst10)]
    histograms = ["2 clients/accuracy personal", "2 clients/accuracy global"]
    assert set(histograms) <= set(events.Tags()["histograms"])
    assert events.Histograms(histograms[0])[0].histogram_value.num == 3
