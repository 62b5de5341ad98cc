"""fedddp.models.sequence: what the models compute, and which inputs they refuse."""

import inspect
import math

import numpy as np
import pytest
import torch

import fedddp
from fedddp.clients import LocalTrainingSpec, choose
from fedddp.clients.private.oracle import VmappedExamples
from fedddp.config import build
from fedddp.data import ClientData, Examples, Normalizer, Partition, Work
from fedddp.data.inputs import Shape
from fedddp.data.targets import IGNORED
from fedddp.errors import UsageError
from fedddp.flat import FlatSpec, flatten
from fedddp.models import GPT, LSTM, TextMean
from fedddp.optim import SGD
from fedddp.tasks import Task

V, T = 11, 7
SMALL = [LSTM(hidden=6), GPT(width=8, heads=2, layers=2), GPT(width=8, heads=2, layers=1, norm="rms")]


def tokens(n=3, length=T):
    return torch.randint(1, V, (n, length), generator=torch.Generator().manual_seed(0))


def built(section, outputs=V, length=T, **about):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return section.build(Shape((length,), V, **about), outputs).double()


@pytest.mark.parametrize(("section", "count"), [(LSTM(), 819_920), (GPT(), 824_064)])
def test_parameter_counts_are_those_of_the_docstrings(section, count):
    assert FlatSpec.of(section.build(Shape((80,), 80, per_position=True), 80)).dim == count
    assert f"{count:,}" in inspect.getdoc(type(section))


@pytest.mark.parametrize("section", SMALL, ids=lambda s: f"{s}"[:24])
def test_a_position_is_predicted_from_those_up_to_it(section):
    module, x = built(section, per_position=True), tokens()
    before = module(x)
    assert before.shape == (3, T, V)
    x[:, 4] = x[:, 4] % (V - 1) + 1  # another token
    moved = (module(x) != before).any(dim=2)
    assert not moved[:, :4].any()
    assert moved[:, 4:].all()


@pytest.mark.parametrize("section", [*SMALL, TextMean(width=5)], ids=lambda s: f"{s}"[:24])
def test_padding_does_not_change_the_output_of_an_example(section):
    x = tokens()
    padded = torch.cat([x, torch.zeros(3, 2, dtype=torch.long)], dim=1)
    module = built(section, outputs=4, length=T + 2)
    assert module(padded).shape == (3, 4)
    assert torch.allclose(module(padded), module(x), rtol=1e-12)
    assert module(torch.zeros(2, T, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("section", SMALL[:2])
def test_one_output_is_that_of_the_last_position_that_is_no_padding(section):
    x = tokens()
    x[1, 3:] = 0
    every, last = built(section, per_position=True)(x), built(section)(x)
    assert torch.equal(last, torch.stack([every[0, -1], every[1, 2], every[2, -1]]))


def test_the_mean_is_of_embeddings_of_tokens():
    module, x = built(TextMean(width=5), outputs=4), tokens()
    assert torch.allclose(module(x), module.head(module.embedding(x).mean(dim=1)), rtol=1e-12)


def test_a_gpt_starts_near_the_uniform_guess_and_its_residual_weights_are_small():
    module = GPT(layers=8).build(Shape((64,), V, per_position=True), V)
    x = tokens(8, 64)
    loss = torch.nn.functional.cross_entropy(module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert abs(loss.item() - math.log(V)) < 0.1
    assert module.blocks[0].up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.blocks[0].down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_tied_weights_are_one_parameter():
    own, tied = (GPT(width=8, heads=2, layers=1, tied=tied) for tied in (False, True))
    free, bound = (built(section, per_position=True) for section in (own, tied))
    assert FlatSpec.of(free).dim - FlatSpec.of(bound).dim == V * 8
    x = tokens()
    hidden = []
    bound.norm.register_forward_hook(lambda *args: hidden.append(args[2]))
    assert torch.equal(bound(x), hidden[0] @ bound.tokens.weight.T)


REFUSED = [
    (LSTM(), Shape((1, 28, 28)), "model.name='lstm': reads sequences of token ids"),
    (GPT(), Shape((80,)), "model.name='gpt': reads sequences of token ids"),
    (TextMean(), (80,), "model.name='text_mean': reads sequences of token ids"),
    (TextMean(), Shape((80,), V, per_position=True), "use model.name=lstm or model.name=gpt"),
    (GPT(context=64), Shape((80,), V), "model.context=64: inputs are sequences of 80 tokens; set model.context=0"),
    (GPT(tied=True), Shape((80,), V), "model.tied=true"),
]


@pytest.mark.parametrize(("section", "shape", "says"), REFUSED)
def test_what_a_model_does_not_read_is_one_line(section, shape, says):
    with pytest.raises(UsageError) as refused:
        section.build(shape, V)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_divide_the_width():
    with pytest.raises(UsageError, match=r"^model.heads=5 do not divide model.width=128"):
        build({"model": {"name": "gpt", "heads": 5}})


def test_fewer_positions_than_the_context_are_read():
    assert built(GPT(width=8, heads=2, context=20), per_position=True)(tokens()).shape == (3, T, V)


@pytest.mark.parametrize("section", [*SMALL, TextMean(width=5)], ids=lambda s: f"{s}"[:24])
def test_layers_are_folded_over_clients(section):
    x, y = tokens(12), torch.arange(12) % V
    partition = Partition.dealt(np.arange(12), np.array([5, 4, 3]))
    data = ClientData(Examples(x, y), partition, Normalizer((0.0,), (1.0,), torch.float32))
    task = Task(lambda: section.build(Shape((T,), V), V), V)
    spec = LocalTrainingSpec(SGD(lr=0.1), Work(1, batch_size=3))
    assert choose(task, data, Examples(x, y), spec)[1].endswith("layers folded over clients")


def test_attention_has_gradients_of_examples_without_a_loop_over_them(recwarn):
    x, y = tokens(4), torch.arange(4)
    task = Task(lambda: built(SMALL[1]), V)
    module = task.model(0)
    examples = VmappedExamples(task.model(0))
    w = flatten(module).unsqueeze(0)
    examples.collect(w, torch.zeros_like(w))
    found = examples.gradients(task, x.unsqueeze(0), y.unsqueeze(0))
    for b in range(4):
        expected = torch.autograd.grad(task.loss(module(x[b : b + 1]), y[b : b + 1]).sum(), list(module.parameters()))
        for (name, _), gradient in zip(module.named_parameters(), expected, strict=True):
            assert torch.allclose(found[name][0, b], gradient, rtol=1e-9, atol=1e-12), name
    assert not [warning for warning in recwarn if "batching rule" in str(warning.message)]


def sentences(n, targets):
    """Texts of up to seven tokens, and their targets of this kind."""
    x = tokens(n)
    x[::3, 5:] = 0
    following = torch.where(x[:, 1:] > 0, x[:, 1:], IGNORED)
    kinds = {
        "class": x[:, 0] % 3,
        "real": x.double().mean(dim=1, keepdim=True).float(),
        "positions": torch.cat([following, torch.full((n, 1), IGNORED)], dim=1),
    }
    return x, kinds[targets]


TASKS = {"classification": ("class", 3), "regression": ("real", 1), "next_token": ("positions", V)}
RUNS = [(section, task) for section in [*SMALL, GPT(width=8, heads=2, tied=True)] for task in TASKS]
RUNS = [(section, task) for section, task in RUNS if task == "next_token" or section != RUNS[-1][0]]


@pytest.mark.slow
@pytest.mark.parametrize(("section", "task"), [*RUNS, (TextMean(), "classification"), (TextMean(), "regression")])
def test_a_model_trains_on_texts_for_a_task_and_is_loaded(tmp_path, section, task):
    kind, outputs = TASKS[task]
    data = fedddp.Dataset.of(sentences(30, kind), sentences(9, kind), outputs, targets=kind)
    table = {
        "run": {"dir": str(tmp_path), "name": "run", "rounds": 1, "threads": 1},
        "task": {"name": task},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    result = fedddp.run(table, dataset=data, partition=[range(20), range(20, 30)], model=section)
    assert math.isfinite(result.history[-1]["test_loss"])
    loaded = fedddp.load(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, result.module.state_dict()[name]) for name, tensor in loaded.items())
