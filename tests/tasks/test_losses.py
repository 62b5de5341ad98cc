"""Losses: closed forms, gradients, what is refused, a user's own from the configuration to the trained model."""

import math

import pytest
import torch
from own_losses import Averaged, Centred, Constant, Poly, Raising
from torch.func import grad, vmap

from fedddp.clients import SequentialTrainer, choose
from fedddp.clients.private.ghost import GhostExamples
from fedddp.clients.private.oracle import VmappedExamples
from fedddp.config import UsageError, build, parse, to_dict
from fedddp.data.targets import TARGETS
from fedddp.federation import federate
from fedddp.optim import SGD
from fedddp.tasks import Task
from fedddp.tasks.losses import LOSSES, CrossEntropy, Focal, LabelSmoothing, MulticlassHinge, check
from tests.helpers.support import assemble, few_digits
from tests.helpers.zoo import BATCHED, SIZES, clients, images, task_of, training

SOME = {"cross_entropy": CrossEntropy(), "focal": Focal(1.5), "label_smoothing": LabelSmoothing(0.2)}
ALL = {**SOME, "multiclass_hinge": MulticlassHinge(0.5), "own": Poly()}


def batch(n=7, classes=5):
    stream = torch.Generator().manual_seed(1)
    return 3 * torch.randn(n, classes, generator=stream, dtype=torch.float64), torch.arange(n) % classes


def gradient(loss, outputs, y):
    return torch.autograd.grad(loss(outputs.requires_grad_(), y).sum(), outputs)[0]


def test_closed_forms():
    """p = (1/2, 1/4, 1/4)."""
    outputs, y = torch.tensor([[math.log(2), 0.0, 0.0]] * 2), torch.tensor([0, 1])
    log2 = math.log(2)
    expected = {
        CrossEntropy(): [log2, 2 * log2],
        Focal(2.0): [log2 / 4, 2 * log2 * 9 / 16],
        LabelSmoothing(0.3): [0.7 * log2 + 0.1 * 5 * log2, 0.7 * 2 * log2 + 0.1 * 5 * log2],
        MulticlassHinge(): [1 - log2, 1 + log2],
        MulticlassHinge(0.5): [0.0, 0.5 + log2],
        Poly(2.0): [log2 + 1, 2 * log2 + 1.5],
    }
    for loss, values in expected.items():
        assert loss(outputs, y).tolist() == pytest.approx(values, abs=1e-6), loss


@pytest.mark.parametrize("loss", [Focal(0.0), LabelSmoothing(0.0), Poly(0.0)])
def test_without_their_parameter_they_are_cross_entropy(loss):
    outputs, y = batch()
    torch.testing.assert_close(loss(outputs, y), CrossEntropy()(outputs, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(loss, outputs, y), gradient(CrossEntropy(), outputs, y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_gradients_are_those_of_finite_differences(loss):
    outputs, y = batch()
    assert torch.autograd.gradcheck(lambda o: loss(o, y), outputs.requires_grad_())


def test_the_hinge_pushes_the_right_score_up_and_its_nearest_rival_down():
    outputs = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 1.0]])
    assert gradient(MulticlassHinge(), outputs, torch.tensor([2, 0])).tolist() == [[0, 1, -1], [0, 0, 0]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_where_an_example_is_certain(gamma):
    for score in (1e4, -1e4):
        outputs = torch.tensor([[score, 0.0]])
        y = torch.tensor([0])
        assert Focal(gamma)(outputs, y).isfinite().all()
        assert gradient(Focal(gamma), outputs, y).isfinite().all()


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_one_example_at_a_time_under_vmap(loss):
    outputs, y = batch()
    one = vmap(grad(lambda o, label: loss(o.unsqueeze(0), label.unsqueeze(0)).squeeze(0)))(outputs, y)
    torch.testing.assert_close(one, gradient(loss, outputs, y))


@pytest.mark.parametrize("model", ["mlp", "group norm"])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_clients_together_learn_what_they_learn_one_by_one(model, loss):
    """Folded layers, and vmap."""
    make = BATCHED[model]
    task, data = Task(task_of(make).make_model, 5, loss), clients()
    spec = training(SGD(lr=0.1), batch_size=5, seed=3)
    batched, why = choose(task, data, images(8), spec, name="vectorized", width=6)
    assert why.startswith("vectorized")
    one = SequentialTrainer(task, data, spec)
    start = task.initial_params(3)
    expected = [one.on((k,), 0).train(start) for k in range(len(SIZES))]
    together = batched.on(tuple(range(len(SIZES))), 0).train(start)
    torch.testing.assert_close(together.delta, torch.cat([r.delta for r in expected]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(together.loss, torch.cat([r.loss for r in expected]), rtol=1e-9, atol=1e-11)
    plain = SequentialTrainer(task_of(make), data, spec).on((0,), 0).train(start)
    assert torch.equal(plain.delta, expected[0].delta) == (loss == CrossEntropy())


@pytest.mark.parametrize("loss", [Focal(1.0), Poly()])
def test_clipped_sums_of_private_training_are_those_of_the_loss(loss):
    task, some = Task(task_of(BATCHED["mlp"]).make_model, 5, loss), images(6)
    w = task.initial_params(0).unsqueeze(0)
    sums = {}
    for oracle in (VmappedExamples(task.model(0)), GhostExamples(task.model(0))):
        g = torch.empty_like(w)
        oracle.collect(w.clone(), g)
        oracle.step(task, some.x.unsqueeze(0), some.y.unsqueeze(0), torch.ones(1, 6, dtype=torch.bool), 1e9)
        sums[type(oracle)] = g
    module = task.model(0)
    whole = torch.autograd.grad(loss(module(some.x), some.y).sum(), list(module.parameters()))
    for g in sums.values():
        torch.testing.assert_close(g[0], torch.cat([part.flatten() for part in whole]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [cls() for name, cls in LOSSES.items() if name != "auto"])
@pytest.mark.parametrize("count", [2, 10])
def test_ours_pass_the_check_of_their_targets_and_no_other(loss, count):
    for kind in TARGETS:
        if kind in loss.targets:
            check(loss, kind, count)
        else:
            with pytest.raises(ValueError, match=r"use loss\.name=auto"):
                check(loss, kind, count)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (Averaged(), "should give [3] losses for 3 examples, gives []"),
        (Centred(), "depends on the others in its batch"),
        (Constant(), "should be finite and differentiable"),
        (Raising(), "fails on outputs [3, 10] and targets [3] (IndexError"),
    ],
)
def test_a_loss_of_the_wrong_kind_is_refused_at_start_in_one_line(tmp_path, loss, told):
    with pytest.raises(UsageError) as refused:
        assemble(tmp_path, few_digits(10), [10], loss=loss, model={"name": "logistic"})
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"loss.name='own_losses:{type(loss).__name__}': ")
    assert "\n" not in str(refused.value)


def test_a_users_own_by_import_path_trains(tmp_path):
    words = ["--loss.name=own_losses:Poly", "--loss.epsilon=0.5"]
    config = build(*parse(words).layers)
    assert config.loss == Poly(0.5)
    assert to_dict(config)["loss"] == {"name": "own_losses:Poly", "epsilon": 0.5}
    ends = {}
    for name, loss in {"own": config.loss, "own as cross-entropy": Poly(0.0), "ce": CrossEntropy()}.items():
        section = {"loss": loss, "model": {"name": "logistic"}, "run": {"rounds": 2, "name": name.replace(" ", "-")}}
        f, server = assemble(tmp_path, few_digits(20), [12, 8], **section)
        ends[name] = federate(f, server).w
    torch.testing.assert_close(ends["own as cross-entropy"], ends["ce"], rtol=1e-4, atol=1e-6)
    assert (ends["own"] - ends["ce"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--loss.name=focall", "did you mean 'focal'?"),
        ("--loss={name = 'focal', gamma = -1}", "loss.gamma=-1: should be greater than or equal to 0"),
        ("--loss={name = 'focal', smoothing = 1}", "loss.smoothing: unknown key; the keys here are gamma"),
        ("--loss.name=own_losses:Pol", "did you mean 'Poly'?"),
    ],
)
def test_mistakes_in_the_section(word, told):
    with pytest.raises(UsageError, match=r".") as refused:
        build(*parse([word]).layers)
    assert told in str(refused.value)
