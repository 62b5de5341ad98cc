"""fedddp.attacks: Byzantine clients, what they do to examples, updates and columns, and to nobody else's."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedddp.api import run
from fedddp.attacks import ALIE, ATTACKS, IPM, Adversary, Attack, Backdoor, Gaussian, LabelFlip, SignFlip
from fedddp.attacks.byzantine import z_max
from fedddp.config import UsageError
from fedddp.data import Dataset, Examples, Partition
from fedddp.data.parts import Divided
from fedddp.federation import federate
from fedddp.flat import FlatModule
from tests.helpers.support import assemble, few_digits

STREAM = torch.Generator


def labelled(n=12, classes=5):
    """n images of 8 x 8 whose pixels are their number, labels 0 to 4."""
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 8, 8).contiguous()
    own = Examples(x, torch.arange(n) % classes)
    return Dataset(own, own, classes, (0.5,), (0.5,))


def test_who_is_byzantine_follows_from_the_seed():
    drawn = [Adversary.drawn(SignFlip(3), 20, seed).clients for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3
    assert Adversary.drawn(SignFlip(0), 20, 0).clients == frozenset()
    assert Adversary.drawn(ATTACKS["none"](), 20, 0).clients == frozenset()
    assert str(Adversary(SignFlip(2), frozenset((7, 3)), 0)) == "2 Byzantine clients: 3, 7"


def test_labels_are_flipped_on_byzantine_clients_only():
    dataset, partition = labelled(), Partition.dealt(np.arange(12), np.array([4, 3, 5]))
    poisoned, deal = Adversary(LabelFlip(1), frozenset((1,)), 0).poisoned(dataset, partition)
    for k in range(3):
        rows, before = deal.indices(k), partition.indices(k)
        assert torch.equal(poisoned.train.x[rows], dataset.train.x[before])
        expected = 4 - dataset.train.y[before] if k == 1 else dataset.train.y[before]
        assert torch.equal(poisoned.train.y[rows], expected)
    assert deal.sizes.tolist() == [4, 3, 5]
    assert dataset.train.y.tolist() == [k % 5 for k in range(12)]


def test_examples_that_an_honest_client_owns_too_stay_as_they_are():
    """Overlapping ranges: 0 to 7 and 4 to 11 of the same order."""
    dataset = labelled()
    partition = Partition(np.arange(12), np.array([0, 4]), np.array([8, 8]))
    poisoned, deal = Adversary(LabelFlip(1), frozenset((0,)), 0).poisoned(dataset, partition)
    assert torch.equal(poisoned.train.y[deal.indices(1)], dataset.train.y[4:])
    assert torch.equal(poisoned.train.y[deal.indices(0)], 4 - dataset.train.y[:8])


def test_of_data_that_lie_divided_clients_elsewhere_stay_elsewhere():
    """Client 1 lives on another rank: nothing here is its own, also once copies lie behind the others."""
    dataset = labelled()
    deal = Divided(np.arange(12), np.array([0, 12, 7]), np.array([7, 6, 5]), public=cast(Any, None))
    _, poisoned = Adversary(LabelFlip(2), frozenset((0, 1)), 0).poisoned(dataset, deal)
    assert poisoned.indices(0).tolist() == list(range(12, 19))
    assert poisoned.indices(1).tolist() == []
    kept, held = poisoned.held_out(0.3, 0)
    assert sorted([*kept.indices(0), *held.indices(0)]) == list(range(12, 19))


def test_clients_that_share_examples_share_them_beside_byzantine_ones_too(tmp_path):
    owners = [range(12), range(12, 20), range(20, 30), range(28, 40)]
    private = {"level": "example", "noise_multiplier": 1.0}
    x = torch.randn(40, 3)
    data = Dataset.of((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()))
    for attack in ("none", "label_flip"):
        with pytest.raises(UsageError) as refused:
            run(dataset=data, partition=owners, model="logistic", attack=attack, privacy=private, dir=str(tmp_path))
        assert refused.value.code == "example-level-overlap"


def test_attacks_on_updates_leave_the_examples_alone():
    dataset, partition = labelled(), Partition.dealt(np.arange(12), np.array([6, 6]))
    for attack in (SignFlip(1), Gaussian(1), ALIE(1), IPM(1)):
        poisoned = Adversary(attack, frozenset((0,)), 0).poisoned(dataset, partition)
        assert poisoned == (dataset, partition)


def test_a_backdoor_marks_a_share_and_says_the_target():
    own = labelled().train
    marked = Backdoor(share=0.5, size=3, target=2).examples(own, 5, STREAM().manual_seed(0))
    changed = [i for i in range(12) if not torch.equal(marked.x[i], own.x[i])]
    assert len(changed) == 6
    for i in range(12):
        if i in changed:
            expected = own.x[i].clone()
            expected[:, 4:7, 4:7] = 255
            assert torch.equal(marked.x[i], expected)
        assert marked.y[i] == (2 if i in changed else own.y[i])


def test_a_backdoors_success_is_counted_on_other_classes():
    (name, probe), *rest = Backdoor(target=2, size=3).probes(labelled().test, 10).items()
    assert (name, rest, len(probe)) == ("attack_success", [], 10)  # 2 of 12 are of the target's class
    assert set(probe.y.tolist()) == {2}
    assert (probe.x[:, :, 4:7, 4:7] == 255).all()


@pytest.mark.parametrize(
    ("attack", "shape", "told"),
    [
        (Backdoor(size=8), (1, 8, 8), r"attack.size=8: inputs of shape \[1, 8, 8\] are too small for the mark"),
        (Backdoor(), (64,), r"attack.size=4: inputs of shape \[64\] are too small"),
        (Backdoor(target=5), (1, 8, 8), "attack.target=5: there are 5 classes, 0 to 4"),
    ],
)
def test_a_backdoor_that_cannot_be_is_refused(attack, shape, told):
    own = Examples(torch.zeros(3, *shape), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=told):
        attack.probes(own, 5)


def test_alie_is_within_the_honest_spread():
    x = torch.tensor([[1.0, 10.0], [77.0, 77.0], [3.0, 14.0], [99.0, 99.0], [5.0, 12.0]], dtype=torch.float64)
    byzantine = torch.tensor([False, True, False, True, False])
    found = ALIE(2, z=2.0).columns(x, byzantine)
    expected = torch.tensor([3 - 2 * (8 / 3) ** 0.5, 12 - 2 * (8 / 3) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(found[byzantine], expected.expand(2, 2))
    assert torch.equal(found[~byzantine], x[~byzantine])


def test_alies_z_follows_from_the_papers_count():
    """m = 50, f = 24: 2 supporters of 26, Phi^-1(24 / 26) = 1.4261. With m = 10, f = 2 nothing can be won."""
    assert z_max(50, 24) == pytest.approx(1.4261, abs=1e-4)
    assert z_max(10, 2) == 0


def test_ipm_is_the_reversed_mean_of_the_honest():
    x = torch.tensor([[1.0, 10.0], [77.0, 77.0], [3.0, 14.0]])
    found = IPM(1, epsilon=0.5).columns(x, torch.tensor([False, True, False]))
    assert found.tolist() == [[1.0, 10.0], [-1.0, -6.0], [3.0, 14.0]]


def test_tampering_goes_by_client_id():
    x = torch.tensor([[1.0], [5.0], [3.0]])
    adversary = Adversary(IPM(1, epsilon=1.0), frozenset((8,)), 0)
    assert adversary.tamper(x, torch.tensor([2, 8, 9])).tolist() == [[1.0], [-2.0], [3.0]]
    assert adversary.tamper(x, torch.tensor([2, 7, 9])) is x
    assert Adversary(IPM(3), frozenset((2, 8, 9)), 0).tamper(x, torch.tensor([2, 8, 9])).tolist() == x.tolist()


def one_round(tmp_path, attack, rule="mean", keys=None, **sections):
    """Every client's update as the pipeline got it, and the model after one round of six clients."""
    got = {}
    sections = {"client": {"batch_size": 5}, "model": {"name": "logistic"}, "run": {"rounds": 1}, **sections}
    aggregation = {"rule": {"name": rule, **(keys or {})}}
    federation, server = assemble(
        tmp_path, few_digits(60), [10] * 6, attack=attack, aggregation=aggregation, **sections
    )
    add = federation.pipeline.reduce.add

    def watched(rows, weight, ids=()):
        got.update(zip(ids, rows.clone(), strict=True))
        add(rows, weight, ids)

    federation.pipeline.reduce.add = watched
    after = federate(federation, server)
    return got, after.w - server.w


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_only_byzantine_clients_upload_something_else(tmp_path, execution):
    how = {"client": {"batch_size": 5, "execution": {"name": execution}}}
    honest, _ = one_round(tmp_path, {"name": "none"}, **how)
    sections = {
        "sign_flip": ({"scale": 3.0}, lambda own: -3.0 * own),
        "backdoor": ({"boost": 2.0, "share": 1e-9}, lambda own: 2.0 * own),  # of 10 examples none is marked
    }
    for name, (keys, expected) in sections.items():
        found, _ = one_round(tmp_path, {"name": name, "num_clients": 2, **keys}, **how)
        byzantine = Adversary.drawn(Attack(2), 6, 0).clients
        for k in range(6):
            wanted = expected(honest[k]) if k in byzantine else honest[k]
            torch.testing.assert_close(found[k], wanted, rtol=1e-5, atol=1e-7)
    noise, _ = one_round(tmp_path, {"name": "gaussian", "num_clients": 2, "std": 5.0}, **how)
    for k in range(6):
        assert torch.equal(noise[k], honest[k]) != (k in byzantine)
    drawn = torch.stack([noise[k] for k in sorted(byzantine)])
    assert drawn.std() == pytest.approx(5.0, rel=0.05)
    assert not torch.equal(*drawn)


def test_colluders_move_the_mean_by_the_formula(tmp_path):
    """IPM against the plain mean: ((m - f) - f epsilon) / m of the honest mean, equal weights."""
    honest, clean = one_round(tmp_path, {"name": "none"})
    _, moved = one_round(tmp_path, {"name": "ipm", "num_clients": 2, "epsilon": 3.0})
    byzantine = Adversary.drawn(Attack(2), 6, 0).clients
    mean = torch.stack([honest[k] for k in range(6) if k not in byzantine]).mean(dim=0)
    torch.testing.assert_close(moved, (4 - 2 * 3.0) / 6 * mean, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(clean, torch.stack(list(honest.values())).mean(dim=0), rtol=1e-4, atol=1e-7)


def test_without_a_rule_or_colluders_updates_are_not_kept(tmp_path):
    """The default sums as it always did, with an attack on updates as well."""
    for attack in ({"name": "none"}, {"name": "sign_flip"}):
        federation, _ = assemble(tmp_path, few_digits(60), [10] * 6, attack=attack, model={"name": "logistic"})
        assert type(federation.pipeline.reduce).__name__ == "FastSum"


def test_a_rule_of_ones_own_goes_by_import_path(tmp_path):
    got, moved = one_round(tmp_path, {"name": "none"}, rule="robust_support:Midrange", keys={"trim": 1})
    ordered = torch.stack(list(got.values())).sort(dim=0).values
    torch.testing.assert_close(moved, (ordered[1] + ordered[-2]) / 2, rtol=1e-4, atol=1e-7)


def test_success_of_a_backdoor_is_told_in_metrics_and_tensorboard(tmp_path):
    """Counted once more by hand: marked test images of other classes than 3 that the model takes for a 3."""
    attack = {"name": "backdoor", "num_clients": 2, "target": 3, "boost": 3.0}
    dataset = few_digits(60, num_test=40)
    federation, server = assemble(
        tmp_path,
        dataset,
        [10] * 6,
        attack=attack,
        run={"rounds": 3},
        model={"name": "logistic"},
        client={"batch_size": 5},
        telemetry={"progress": "off", "tensorboard": True},
    )
    after = federate(federation, server)
    federation.telemetry.close(federation.telemetry.summary())
    x = dataset.test.x.clone()
    x[:, :, -5:-1, -5:-1] = 255
    pixels = (x.double() / 255 - dataset.mean[0]) / dataset.std[0]
    model = FlatModule(federation.trainer._task.model(0).double())
    model.load(after.w.double())
    taken = model.module.eval()(pixels).argmax(dim=1)[dataset.test.y != 3] == 3
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("attack_success") is None for line in lines] == [True, True, False]  # evaluated after the last
    assert lines[-1]["attack_success"] > 0.1
    assert lines[-1]["attack_success"] == pytest.approx(float(taken.double().mean()), abs=1.5 / len(taken))
    assert json.loads((folder / "summary.json").read_text())["final_attack_success"] == lines[-1]["attack_success"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert "1 learning/attack success" not in events.Tags()["scalars"]  # a single point makes no curve
