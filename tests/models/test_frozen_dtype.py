"""model.frozen_dtype: the frozen layers in a type of their own, the others as before."""

import copy

import pytest
import torch
from torch import nn

import fedddp
from fedddp.comm import Place
from fedddp.config import build
from fedddp.models.frozen import hold_frozen_in
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.distributed import configured, train
from tests.helpers.support import refused_by

LOW = torch.bfloat16


class Net(nn.Module):
    """A frozen body, in part a list that is not called itself, and a head; 8 x 8 inputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(64, 16), nn.BatchNorm1d(16)])
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = x.flatten(1)
        for part in self.body:
            x = part(x)
        return self.head(x.relu())


MODEL = {"name": f"{__name__}:Net", "trainable": ["head.*"], "frozen_dtype": "bfloat16"}


def net():
    torch.manual_seed(0)
    module = Net().eval()
    module.body.requires_grad_(False)
    return module


def table(folder, model=MODEL, **sections):
    return configured(folder, data__args={"shape": [1, 8, 8]}, **sections) | {"model": model}


def test_frozen_layers_compute_in_their_type_and_hand_on_the_other():
    module, x = hold_frozen_in(net(), LOW), torch.randn(4, 1, 8, 8)
    seen = []
    module.body[0].register_forward_hook(lambda part, args, out: seen.append((args[0].dtype, out.dtype)), prepend=True)
    outputs = module(x)
    assert seen == [(LOW, LOW)]
    assert outputs.dtype == torch.float32
    assert {t.dtype for t in module.body.state_dict().values()} == {LOW, torch.int64}
    assert {p.dtype for p in module.head.parameters()} == {torch.float32}
    assert torch.allclose(outputs, net()(x), atol=0.05)
    assert not torch.equal(outputs, net()(x))


def test_in_float64_all_of_it_is_exact():
    low, x = hold_frozen_in(net(), LOW), torch.randn(4, 1, 8, 8).double()
    rounded = net()
    rounded.body.to(LOW)
    assert torch.equal(copy.deepcopy(low).double()(x), rounded.double()(x))


@pytest.mark.parametrize("execution", ["auto", "sequential"])
def test_a_run_trains_the_head_on_what_low_precision_gives(tmp_path, execution):
    sections = {"client__execution": {"name": execution}}
    result = fedddp.run(table(tmp_path, **sections), run={"name": "low"})
    exact = fedddp.run(table(tmp_path, {**MODEL, "frozen_dtype": "off"}, **sections), run={"name": "exact"})
    assert result.w.dtype == torch.float32
    assert torch.allclose(result.w, exact.w, atol=0.05)
    assert not torch.equal(result.w, exact.w)
    loaded = fedddp.load(tmp_path / "runs" / "low")
    assert loaded.body[0].weight.dtype == LOW
    assert all(torch.equal(t, result.module.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_clients_are_trained_in_batches_and_the_frozen_part_is_held_once(tmp_path):
    prepared = prepare(resolve(build(table(tmp_path)), Place()), Place())
    assert prepared.trainer[1].startswith("vectorized")
    first, second = prepared.task.model(0), prepared.task.model(0)
    assert first.body[0].weight.dtype == LOW
    assert first.body[0].weight.data_ptr() == second.body[0].weight.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": {"level": "example", "noise_multiplier": 1.0, "randomness": "seeded"}},
        {"client": {"precision": "bfloat16"}},
        {"client": {"precision": "float64"}},
        {"algorithm": {"name": "scaffold"}},
    ],
    ids=["example", "autocast", "float64", "scaffold"],
)
def test_ranks_agree(run_ranks, tmp_path, sections):
    ranks = run_ranks(train, 2, table(tmp_path, **sections))
    assert len({rank["sha256"] for rank in ranks}) == 1
    assert ranks[0]["history"][-1]["participants"]


@pytest.mark.parametrize("trainable", [[], ["*"]])
def test_nothing_frozen_is_one_line(tmp_path, trainable):
    line = refused_by(tmp_path, {**MODEL, "trainable": trainable}, data__args={"shape": [1, 8, 8]})
    assert line.startswith("model.frozen_dtype='bfloat16': no layer of the model is frozen")
