"""What leaves a run: model.safetensors and its best round, fedddp.load, fedddp.normalizer."""

import hashlib
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedddp
from fedddp.checkpoints.checkpoint import Checkpoints
from fedddp.checkpoints.export import BEST, LAST, Exports, exported, named
from fedddp.checkpoints.saved import candidates
from fedddp.clients import ClientStore
from fedddp.comm import Comm
from fedddp.data import DATASETS
from fedddp.evaluation.server import Score
from fedddp.flat import FlatModule, FlatSpec
from fedddp.models import GAN, MLP
from fedddp.types import ServerState
from tests.helpers.support import flat

SMALL = {
    "data": {"name": "synthetic", "args": {"num_train": 60, "num_test": 20}, "partition": {"num_clients": 3}},
    "telemetry": {"progress": "off", "tensorboard": False},
}


class Tied(nn.Module):
    """Two names for one parameter, a counter, an integer buffer that matters, a constant that is not persistent."""

    def __init__(self, hidden=8):
        super().__init__()
        self.flat, self.embed = nn.Flatten(), nn.Linear(784, hidden)
        self.inner, self.again = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.again.weight = self.inner.weight
        self.norm, self.head = nn.BatchNorm1d(hidden), nn.Linear(hidden, 10)
        self.register_buffer("order", torch.randperm(hidden))
        self.register_buffer("constant", torch.rand(hidden), persistent=False)
        self.register_parameter("scale", nn.Parameter(torch.ones(())))

    def forward(self, x):
        x = self.norm(self.again(self.inner(self.embed(self.flat(x)))))[:, self.order]
        return self.scale * self.head(x + self.constant)


def run(folder, **sections):
    run = {"dir": str(folder), "rounds": 2, "threads": 1, **sections.pop("run", {})}
    return fedddp.run(SMALL, run=run, **sections)


def images():
    return DATASETS["synthetic"](None, False, num_train=1, num_test=8).test.x


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_file_has_the_names_of_the_module_and_loads_strictly(tmp_path):
    result = run(tmp_path, model=MLP(hidden=8, norm="batch"))
    module = MLP(hidden=8, norm="batch").build((1, 28, 28), 10)
    module.load_state_dict(load_file(result.folder / LAST), strict=True)
    assert "2.num_batches_tracked" in load_file(result.folder / LAST)
    assert same(module.state_dict(), result.module.state_dict())


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"name": "mlp", "hidden": 8, "norm": "batch"}, "checkpoint": {"every": 0}},
        {"model": {"name": "svm", "features": 20}, "loss": "multiclass_hinge", "run": {"seed": 5}},
        {"model": {"name": "logistic"}, "client": {"precision": "float64"}, "evaluate": {"every": 0}},
        {"model": {"name": "tests.test_trained:Tied", "hidden": 6}, "algorithm": {"name": "ditto"}},
        pytest.param(
            {"model": {"name": "mlp", "hidden": 8, "lora": {"rank": 2}}, "algorithm": {"name": "flora"}},
            marks=pytest.mark.skipif(find_spec("peft") is None, reason="needs peft"),
        ),
    ],
    ids=["no checkpoint", "constants of the seed", "float64", "tied", "adapters that a server adds to"],
)
def test_load_gives_the_module_of_the_run(tmp_path, sections):
    sections = {name: {"name": one} if isinstance(one, str) else one for name, one in sections.items()}
    result = run(tmp_path, **sections)
    model, normalize = fedddp.load(result.folder), fedddp.normalizer(result.folder)
    assert not model.training
    x = normalize(images())
    assert torch.equal(model(x), result.module(x))
    assert same(model.state_dict(), load_file(result.folder / LAST))


@pytest.mark.parametrize(("name", "key"), [(LAST, "weights_sha256"), (BEST, "best_weights_sha256")])
def test_exported_weights_are_compared_with_their_sum(tmp_path, name, key):
    result = run(tmp_path, model=MLP(hidden=8), checkpoint={"every": 0})
    path, best = result.folder / name, name == BEST
    content = path.read_bytes()
    assert result.summary[key] == hashlib.sha256(content).hexdigest()
    if best:
        (result.folder / LAST).unlink()  # it may be of the same round
    fedddp.load(result.folder, best=best)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a flipped bit of a weight
    with pytest.raises(fedddp.UsageError) as refused:
        fedddp.load(result.folder, best=best)
    assert refused.value.code == "weights-changed"
    (result.folder / "summary.json").unlink()
    fedddp.load(result.folder, best=best)


def test_equal_runs_have_equal_sums(tmp_path):
    assert len({run(tmp_path, model=MLP(hidden=8)).summary["weights_sha256"] for _ in range(6)}) == 1


def test_a_checkpoint_replaces_exported_weights_that_were_changed(tmp_path, logged):
    result = run(tmp_path, model=MLP(hidden=8))
    path = result.folder / LAST
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert same(fedddp.load(result.folder).state_dict(), result.module.state_dict())
    assert [str(path) in line for line in logged] == [True]


def test_the_sum_of_a_finished_run_does_not_speak_of_later_rounds(tmp_path):
    result = run(tmp_path, model=MLP(hidden=8))
    summary = result.folder / "summary.json"
    before = summary.read_text()
    longer = run(tmp_path, model=MLP(hidden=8), run={"rounds": 3, "resume": str(result.folder)})
    assert longer.folder == result.folder
    summary.write_text(before)  # as if it was killed before its end
    assert same(fedddp.load(result.folder).state_dict(), longer.module.state_dict())


def test_new_inputs_are_normalised_as_in_training(tmp_path):
    """The accuracy on the test set is the one that the run tells."""
    result = run(tmp_path, model={"name": "mlp", "hidden": 16}, client={"local_epochs": 5})
    test = DATASETS["synthetic"](None, False, num_train=60, num_test=20).test
    right = fedddp.load(result.folder)(fedddp.normalizer(result.folder)(test.x)).argmax(dim=1) == test.y
    assert float(right.double().mean()) == result.summary["final_test_accuracy"] > 0.3


def test_inputs_that_are_no_pictures(tmp_path):
    data = torch.randn(60, 5), torch.randint(0, 3, (60,))
    result = fedddp.run(
        SMALL, {"data.name": "synthetic"}, dataset=fedddp.Dataset.of(data, data), model={"name": "mlp", "hidden": 4},
        run={"dir": str(tmp_path), "rounds": 1, "threads": 1},
    )  # fmt: skip
    x = fedddp.normalizer(result.folder)(data[0])
    assert torch.equal(x, data[0])
    assert torch.equal(fedddp.load(result.folder)(x), result.module(x))


def test_a_conditional_gan_has_both_networks_and_its_best_round_by_loss(tmp_path):
    layer = {"task.name": "conditional_gan", "run": {"dir": str(tmp_path), "rounds": 2, "threads": 1}}
    result = fedddp.run(SMALL, layer, model=GAN(latent=4))
    model = fedddp.load(result.folder, best=True)
    assert {name.split(".")[0] for name in load_file(result.folder / BEST)} == {"generator", "discriminator"}
    assert model.draw(torch.tensor([1, 2])).shape == (2, 1, 28, 28)
    losses = [m["test_loss"] for m in result.history]
    assert exported(result.folder, BEST)[0].round == losses.index(min(losses)) + 1


def test_a_module_that_was_an_object_is_passed_again(tmp_path):
    class Local(Tied):
        pass

    result = run(tmp_path, model=Local)
    with pytest.raises(fedddp.UsageError, match="model=Net"):
        fedddp.load(result.folder)
    with pytest.raises(fedddp.UsageError, match=r" of shape \[8\].* \[7\]"):
        fedddp.load(result.folder, model=lambda: Tied(7))
    for model in (Local, Tied, Tied(), lambda: Local(8)):
        assert same(fedddp.load(result.folder, model=model).state_dict(), load_file(result.folder / LAST))
    (result.folder / LAST).unlink()
    assert torch.equal(FlatModule(fedddp.load(result.folder, model=Local)).w, result.w)


def test_the_module_of_a_run_that_started_from_weights_needs_them_no_more(tmp_path):
    first = run(tmp_path, model={"name": "logistic"})
    weights = shutil.copy(first.folder / LAST, tmp_path / "start.safetensors")
    second = run(tmp_path, model={"name": "logistic", "weights": str(weights)})
    (tmp_path / "start.safetensors").unlink()
    assert same(fedddp.load(second.folder).state_dict(), load_file(second.folder / LAST))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "has no model;"),
        ({"best": True}, "has no evaluated model;"),
        ({"round": 2}, "has no checkpoint of round 2;"),
        ({"best": True, "round": 2}, "best=True, round=2: both say which model;"),
    ],
)
def test_a_folder_without_such_a_model_is_refused(tmp_path, asked, reason):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(fedddp.UsageError, match=reason):
        fedddp.load(tmp_path, **asked)


def test_a_damaged_file_is_skipped_with_a_warning(tmp_path, logged):
    result = run(tmp_path, model={"name": "logistic"})
    (result.folder / LAST).write_bytes(b"no safetensors at all")
    assert torch.equal(FlatModule(fedddp.load(result.folder)).w, result.w)
    assert LAST in logged[0]


# -- which round ----------------------------------------------------------------------------------------------


def trained(folder, scores, *, every=1, done=0, end=True, keep=3):
    """A run whose model of round t is t everywhere, with these (accuracy, loss) by round; None: not evaluated."""
    module = nn.Linear(2, 1)
    files = Exports(folder, named(FlatSpec.of(module), module), {"shape": [2]}, candidates(folder, done))
    folder.mkdir(exist_ok=True)
    kept = Checkpoints(folder, {}, Comm.alone(), every=every, keep=keep, stateful=False, done=done, exports=files)
    for t, score in enumerate(scores, done + 1):
        server = ServerState(torch.full((3,), float(t)), flat(3), {}, t)
        last = end and t == done + len(scores)
        kept.after_round(
            server, ClientStore(), score and Score({"accuracy": score[0]}, score[1], torch.eye(2)), last=last
        )
    kept.wait()
    return kept


def rounds(folder):
    """(last, best) as the files have them."""
    found = []
    for name in (LAST, BEST):
        file = exported(folder, name)
        found.append(file and file[0].round)
        assert file is None or set(load_file(folder / name)["weight"].flatten().tolist()) == {file[0].round}
    return tuple(found)


@pytest.mark.parametrize("every", [0, 1, 2, 10])
@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)], 2),
        ([(0.9, 1.0), (0.9, 2.0), (0.7, 1.0)], 2),
        ([None, (0.1, float("nan")), None], 2),
        ([(None, 2.0), (None, 1.0), (None, float("inf"))], 2),
        ([(None, float("nan")), None], None),
    ],
)
def test_last_and_best(tmp_path, scores, best, every):
    trained(tmp_path, scores, every=every)
    assert rounds(tmp_path) == (len(scores), best)


def test_a_run_that_is_cut_short_leaves_its_best_round(tmp_path):
    """Either as a checkpoint or, where it has none, as a file."""
    trained(tmp_path / "a", [(0.9, 1.0), (0.5, 1.0), (0.6, 1.0)], every=2, end=False).flush()
    assert rounds(tmp_path / "a") == (None, 1)
    trained(tmp_path / "b", [(0.5, 1.0), (0.9, 1.0), *[(0.6, 1.0)] * 6], every=2, end=False, keep=1)
    assert rounds(tmp_path / "b") == (None, None)
    assert max(candidates(tmp_path / "b", 8), key=lambda c: c.quality).round == 2


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_knows_the_best_round_of_before(tmp_path, every):
    trained(tmp_path, [(0.4, 1.0), (0.5, 1.0), (0.9, 1.0), (0.6, 1.0)], every=every, end=False)
    trained(tmp_path, [(0.7, 1.0)], every=every, done=4)
    assert rounds(tmp_path) == (5, 3)
    trained(tmp_path, [(0.95, 1.0), (0.1, 1.0)], every=every, done=5)
    assert rounds(tmp_path) == (7, 6)


def test_the_newest_of_file_and_checkpoint_is_loaded(tmp_path):
    sections = {"model": {"name": "logistic"}, "evaluate": {"every": 2}}
    first = run(tmp_path, **sections)
    stale = (first.folder / LAST).read_bytes()
    second = run(tmp_path, **sections, run={"rounds": 4, "resume": str(first.folder)})
    assert second.summary["rounds"] == 4
    (first.folder / LAST).write_bytes(stale)  # as if the run had been killed before its end
    assert torch.equal(FlatModule(fedddp.load(first.folder)).w, second.w)
    models = {t: FlatModule(fedddp.load(first.folder, round=t)).w for t in (2, 3, 4)}
    assert torch.equal(models[2], first.w)
    assert torch.equal(models[4], second.w)
    assert not torch.equal(models[3], second.w)
    with pytest.raises(fedddp.UsageError, match=r"round 9; there is round .*4$"):
        fedddp.load(first.folder, round=9)
