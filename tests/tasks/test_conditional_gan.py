"""The task conditional_gan: one backward pass is both networks' step, noise is derived, drawings are what was asked."""

import json

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedddp.cli.generate import trained
from fedddp.clients import SequentialTrainer, choose
from fedddp.flat import FlatModule, FlatSpec
from fedddp.models import GAN
from fedddp.optim import SGD, Adam
from fedddp.rng import global_seed
from fedddp.tasks import ConditionalGAN
from fedddp.tasks.conditional_gan import Adversaries, drawn
from fedddp.tasks.losses import CrossEntropy
from fedddp.telemetry.figures import grid
from fedddp.train import main as train
from tests.helpers.commands import command
from tests.helpers.zoo import CLASSES, SHAPE, clients, dataset, images, training

pytestmark = pytest.mark.slow

generate = command("generate")

HOW = {"local_epochs": 1, "batch_size": 5, "seed": 3}
TRAIN = (
    "--task.name=conditional_gan",
    "--model={name = 'gan', latent = 4, channels = 8}",
    "--data={name = 'synthetic', args = {num_train = 240, num_test = 20, num_classes = 3, shape = [1, 8, 8]}}",
    "--client={optimizer = {name = 'adam', lr = 0.005, beta1 = 0.5}, batch_size = 12}",
    "--run.threads=1",
    "--telemetry.progress=off",
)


def task():
    section = ConditionalGAN(samples=2)
    return section.build(lambda: GAN(latent=3, channels=2).build(SHAPE, CLASSES).double(), CrossEntropy(), dataset())


def test_one_backward_pass_is_the_step_of_both_networks():
    """(g_G, g_D), each as if computed alone."""
    module, some = task().model(0), images(6)
    both, names = list(module.parameters()), [name for name, _ in module.named_parameters()]
    with global_seed(1, "test"):
        outputs = task().outputs(module, some.x, some.y)
    got = torch.autograd.grad(task().loss(outputs, some.y).mean(), both)
    with global_seed(1, "test"):
        z = torch.randn(6, 3, dtype=torch.float64)
    fake = module.generator(z, some.y)
    expected = dict.fromkeys(names)
    g_loss = F.softplus(-module.discriminator(fake, some.y)).mean()
    d_loss = F.softplus(-module.discriminator(some.x, some.y)).mean()
    d_loss = d_loss + F.softplus(module.discriminator(fake.detach(), some.y)).mean()
    for network, loss in ((module.generator, g_loss), (module.discriminator, d_loss)):
        own = [name for name, p in module.named_parameters() if any(p is q for q in network.parameters())]
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        expected.update(zip(own, gradients, strict=True))
    for name, gradient in zip(names, got, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
        assert gradient.abs().max() > 0, name


def test_the_vector_is_both_networks_and_no_constant():
    pair, spec = GAN(latent=3, channels=2).build(SHAPE, CLASSES), FlatSpec.of(task().model(0))
    assert spec.num_trainable == sum(p.numel() for p in pair.parameters())
    assert {name.split(".")[0] for name in spec.names} == {"generator", "discriminator"}
    flat = FlatModule(task().model(0))
    mean = flat.module.mean.clone()
    flat.load(torch.zeros_like(flat.w))
    assert torch.equal(flat.module.mean, mean)


def test_the_discriminator_sees_drawings_as_it_sees_data():
    """Normalised by the dataset's mean and deviation, where data are pixels; data of floating point are taken as is."""
    module = Adversaries(GAN(latent=3, channels=2).build(SHAPE, CLASSES), (0.25,), (0.5,))
    seen = []
    module.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with global_seed(0, "draw"):
        module(torch.full((2, *SHAPE), 7.0), torch.tensor([0, 1]))
    with global_seed(0, "draw"):
        images_drawn = module.train().draw(torch.tensor([0, 1]))
    torch.testing.assert_close(seen[0][2:], (images_drawn - 0.25) / 0.5)
    assert (seen[0][:2] == 7).all()
    assert (task().model(0).mean, task().model(0).std) == (0, 1)


def test_noise_is_a_function_of_seed_round_and_client():
    gan, data = task(), clients()
    one, again = (SequentialTrainer(gan, data, training(Adam(lr=0.01), **HOW)) for _ in range(2))
    start = gan.initial_params(3)
    state = torch.get_rng_state()
    first = one.on((2,), 0).train(start)
    one.on((0,), 1).train(start)
    assert torch.equal(one.on((2,), 0).train(start).delta, first.delta)
    torch.rand(3)
    assert torch.equal(again.on((2,), 0).train(start).delta, first.delta)
    assert not torch.equal(one.on((2,), 1).train(start).delta, first.delta)
    torch.set_rng_state(state)


def test_a_correction_of_the_gradient_reaches_both_networks():
    """The hook every algorithm uses: doing nothing changes nothing; the proximal term alone moves by itself."""
    gan, data = task(), clients()
    trainer = SequentialTrainer(gan, data, training(SGD(lr=0.05), **HOW))
    start = gan.initial_params(3)
    plain = trainer.on((0,), 0).train(start)
    torch.testing.assert_close(trainer.on((0,), 0).train(start, lambda g, w: g).delta, plain.delta)
    p = trainer.spec.num_trainable
    shrunk = trainer.on((0,), 0).train(start, lambda g, w: w)
    steps = int(shrunk.steps)
    torch.testing.assert_close(shrunk.w[0, :p], start[:p] * 0.95**steps)


def test_a_task_with_noise_of_its_own_trains_one_by_one():
    trainer, why = choose(task(), clients(), images(8), training(**HOW), name="vectorized", width=3)
    assert trainer.width == 1
    assert why == "sequential: this task draws noise of its own in every step"


def test_drawings_are_of_the_seed_and_disturb_nothing():
    module, y = task().model(0).eval(), torch.tensor([0, 3, 4])
    before = torch.get_rng_state()
    first = drawn(module, y, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (3, *SHAPE)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(drawn(module, y, 5), first)
    assert not torch.equal(drawn(module, y, 6), first)
    assert task().pictures(module)["samples"].shape == (2, CLASSES, *SHAPE)


def test_a_grid_lays_rows_and_columns_side_by_side():
    pictures = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 5) / 5
    page = grid(pictures, gap=2)
    assert page.shape == (2 * 6, 3 * 7, 3)
    assert page[0, ::7, 0].tolist() == [0, 51, 102]
    assert page[6, ::7, 1].tolist() == [153, 204, 255]
    assert page[4:6].max() == 0
    assert grid(pictures, scale=3).shape == (36, 63, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GAN, the same one interrupted and resumed, and a classifier of the same patterns."""
    folder = tmp_path_factory.mktemp("runs")
    places = ["--run.dir=" + str(folder), "--data.partition.num_clients=2"]
    assert train([*TRAIN, *places, "--run.name=gan", "--run.rounds=12", "--evaluate.every=6"]) == 0
    assert train([*TRAIN, *places, "--run.name=two", "--run.rounds=7", "--telemetry.tensorboard=false"]) == 0
    more = ["--run.name=two", "--run.rounds=12", "--run.resume=auto", "--telemetry.tensorboard=false"]
    assert train([*TRAIN, *places, *more]) == 0
    judge = [word for word in TRAIN[2:] if "client" not in word]
    assert train([*judge, *places, "--run.name=judge", "--model.name=logistic", "--run.rounds=3"]) == 0
    return folder


def test_a_run_has_losses_and_pictures_and_no_accuracy(runs):
    summary = json.loads((runs / "gan" / "summary.json").read_text())
    assert (summary["final_test_accuracy"], summary["best_test_accuracy"], summary["rounds"]) == (None, None, 12)
    metrics = [json.loads(line) for line in (runs / "gan" / "metrics.jsonl").read_text().splitlines()]
    assert [m["test_accuracy"] for m in metrics] == [None] * 12
    assert [m["round"] for m in metrics if m["test_loss"] is not None] == [6, 12]
    events = EventAccumulator(str(runs / "gan" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("1 learning/samples")] == [6, 12]
    assert set(events.Tags()["images"]) == {"1 learning/samples", "2 clients/partition"}


def test_resumed_it_draws_what_the_uninterrupted_one_draws(runs):
    sums = {json.loads((runs / name / "summary.json").read_text())["model_sha256"] for name in ("gan", "two")}
    assert len(sums) == 1


def test_what_is_asked_for_is_drawn_and_recognised(runs, tmp_path, capsys):
    out = tmp_path / "drawn.png"
    words = [str(runs / "gan"), "0122", f"--out={out}", "--rows=2", f"--judge={runs / 'judge'}", "--samples=90"]
    assert generate(words) == 0
    told = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    right = int(told.split(" takes ")[1].split()[0])
    assert right >= 80, told
    assert generate([str(runs / "gan"), "--generate", "1,2", f"--out={out}"]) == 0


def test_the_judge_is_the_classifier_of_its_run(runs):
    judge = trained(runs / "judge")
    test = judge.dataset.test
    right = (judge.predictions(test.x / 255) == test.y).double().mean().item()
    assert right == json.loads((runs / "judge" / "summary.json").read_text())["final_test_accuracy"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{runs}/gan", "03"], "'03': should be classes from 0 to 2"),
        (["{runs}/gan", "0x"], "'0x': should be classes from 0 to 2"),
        (["{runs}/gan"], "give a run folder and the classes to draw"),
        (["{runs}/none", "0"], "is not a run folder"),
        (["{runs}/judge", "0"], "is neither the run of a GAN"),
        (["{runs}/gan", "0", "--colour=red"], "colour: unknown key"),
        (["{runs}/gan", "0", "--rows=0"], "argument --rows: '0' should be a whole number"),
        (["{runs}/gan", "0", "--out={runs}/no/such.png"], "/no/such.png: cannot be written (No such file"),
        (["{runs}/gan", "0", "--out={runs}/x.foo"], "/x.foo: cannot be written (Format 'foo' is not supported"),
        (["{runs}/gan", "0", "--out={runs}"], ": cannot be written (Is a directory"),
        (["{runs}/gan", "0", "--out={runs}/x.png", "--judge={runs}/gan"], "is not the run of a classifier"),
    ],
)
def test_mistakes_are_one_line(runs, words, told, capsys):
    assert generate([word.format(runs=runs) for word in words]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--evaluate.target_accuracy=0.9"], "evaluate.target_accuracy=0.9: task.name='conditional_gan' has no"),
        (["--privacy.level=example", "--privacy.noise_multiplier=1"], "privacy.level='example'"),
        (["--algorithm.name=moon"], "algorithm.name='moon': compares features of a classifier"),
        (
            ["--algorithm={name = 'personal', inner = {name = 'moon'}, private = ['d*']}"],
            "algorithm.name='personal': compares features",
        ),
        (["--loss.name=focal"], "loss.name='focal': a conditional GAN has losses of its own"),
        (["--model.name=mlp"], "needs a module with a generator; use model.name=gan"),
        (["--task.name=classification"], "set task.name=conditional_gan"),
        (
            ["--evaluate.holdout=0.2", "--evaluate.personal_every=1"],
            "personal_every=1: task.name='conditional_gan' has",
        ),
        (["--data.args.shape=[36]"], "it draws images, and inputs here have shape [36]"),
        (["--data.args.shape=[1, 6, 6]"], "height and width have to be multiples of 4"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(tmp_path, words, told, capsys):
    base = [*TRAIN, f"--run.dir={tmp_path}"]
    if "mlp" in words[0]:
        base.remove(TRAIN[1])
    assert train([*base, *words]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["--algorithm.name=qffl"], ["--algorithm.name=ifca"], ["--attack.name=backdoor", "--attack.size=2"]],
    ids=lambda words: words[0],
)
def test_whatever_looks_at_losses_or_accuracies_does_with_what_there_is(tmp_path, words):
    sgd = ["--client.optimizer.lr=0.01", "--client.batch_size=60", "--telemetry.tensorboard=false"]
    base = [word for word in TRAIN if not word.startswith("--client=")]
    places = [f"--run.dir={tmp_path}", "--run.name=one", "--run.rounds=1", "--data.partition.num_clients=2"]
    assert train([*base, *places, *sgd, *words, "--telemetry.progress=lines"]) == 0
    (line,) = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["failures"] == 0
