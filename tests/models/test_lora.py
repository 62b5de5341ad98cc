"""model.lora: the adapters are the model that travels, of transformers' models and of any other with linear layers."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedddp
from fedddp.clients import SequentialTrainer, VectorizedTrainer
from fedddp.config import UsageError, build, to_dict
from fedddp.flat import FlatSpec
from fedddp.models.lora import LoRA
from fedddp.registry.torchvision_operators import declare_if_missing
from tests.helpers import llama
from tests.helpers.support import refused_by

declare_if_missing()
pytest.importorskip("transformers", exc_type=ImportError)
peft = pytest.importorskip("peft", exc_type=ImportError)
ADAPTERS = ("lora_A.default.weight", "lora_B.default.weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama.save(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(folder):
    return {"name": f"hf:{folder}", "lora": llama.LORA}


class Net(nn.Module):
    """Two linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x))


def small(tmp_path, section, **more):
    data = {"name": "synthetic", "args": {"shape": [1, 8, 8], "num_classes": 4, "num_train": 80, "num_test": 20}}
    quiet = {"progress": "off", "tensorboard": False}
    run = {"dir": str(tmp_path / "runs"), "name": "run", "rounds": 1, "threads": 1}
    return {"run": run, "data": data, "model": {"name": f"{__name__}:Net", **section}, "telemetry": quiet} | more


def test_the_vector_is_the_adapters(tmp_path, model):
    spec = llama.prepared(tmp_path, model).spec
    layers = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")]
    assert list(spec.names) == [f"{layer}.{end}" for layer in layers for end in ADAPTERS]
    assert spec.num_trainable == spec.dim == 2 * ((16 + 16) * 4 + (16 + 8) * 4)


def moved(trainer, start):
    together = [range(8)] if trainer.width > 1 else [(k,) for k in range(8)]
    return torch.cat([trainer.on(ids, 0).train(start).w for ids in together])


@pytest.mark.parametrize("more", [{}, {"checkpointing": True}, {"frozen_dtype": "bfloat16"}])
@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.5}, {"name": "adamw", "lr": 0.01}])
def test_eight_clients_at_once_end_where_one_by_one_takes_them(tmp_path, model, more, optimizer):
    precision = "float32" if "frozen_dtype" in more else "float64"
    client = {"batch_size": 2, "local_epochs": 2, "precision": precision, "optimizer": optimizer}
    run = llama.prepared(tmp_path, model | more, client=client)
    trainer, why = run.trainer
    assert why == "vectorized: 8 clients at once, layers folded over clients"
    start = run.task.initial_params(0)
    start += 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=start.dtype)
    ends = moved(trainer, start)
    tolerance = 1e-9 if precision == "float64" else 0.05  # where rounding to 8 bits flips, a step shows it
    assert (ends - moved(SequentialTrainer(run.task, run.data, run.training), start)).abs().max() < tolerance
    assert (ends - start).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-5), ("float64", 1e-10)])
def test_one_client_equals_a_plain_loop_of_peft(tmp_path, folder, model, precision, within):
    import transformers

    sections = {"client": {"batch_size": 4, "precision": precision, "optimizer": {"lr": 0.1}}}
    dataset, _ = llama.data()
    everything = [range(len(dataset.train))]
    result = fedddp.run(llama.table(tmp_path, model, **sections), dataset=dataset, partition=everything)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    base = transformers.LlamaForCausalLM.from_pretrained(folder).to(getattr(torch, precision))
    plain = peft.get_peft_model(base, config, autocast_adapter_dtype=False).train()
    named = {name.removeprefix("base_model.model."): p for name, p in plain.named_parameters() if p.requires_grad}
    run = llama.prepared(tmp_path / "again", model, **sections)
    views = run.spec.views(run.task.initial_params(0))
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(views[name])
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    x, y = dataset.train.x, dataset.train.y
    trainer = SequentialTrainer(run.task, run.data, run.training)
    for round in range(2):
        order = fedddp_plan(trainer, round, len(x))
        for index, mask in zip(order.index[0], order.mask[0], strict=True):
            rows = index[mask]
            logits = plain(input_ids=x[rows], attention_mask=torch.ones_like(x[rows])).logits
            each = F.cross_entropy(logits.transpose(1, 2), y[rows], reduction="none")
            counted = (y[rows] != -100).sum(dim=1).clamp(min=1)
            optimizer.zero_grad()
            (each.sum(dim=1) / counted).mean().backward()
            optimizer.step()
    ends, named = result.module.state_dict(), {name: p.detach() for name, p in named.items()}
    assert max(float((ends[name] - p).abs().max()) for name, p in named.items()) < within
    assert max(float((views[name] - p).abs().max()) for name, p in named.items()) > 100 * within


def fedddp_plan(trainer, round, n):
    """The batches of the only client."""
    from fedddp.data import plan

    return plan([n], [0], round, batch_size=4, seed=0)


def test_any_model_of_linear_layers_gets_adapters_on_all_but_the_last(tmp_path):
    result = fedddp.run(small(tmp_path, {"lora": {"rank": 2}}))
    assert [name.rpartition(".lora")[0] for name in result.module.state_dict() if "lora_A" in name] == [
        "body.1",
        "body.3",
    ]
    assert len(result.w) == 2 * (64 + 6) + 2 * (6 + 6)
    loaded = fedddp.load(tmp_path / "runs" / "run").state_dict()
    assert all(torch.equal(t, result.module.state_dict()[name]) for name, t in loaded.items())
    plain = {"name": f"{__name__}:Net", "lora": {"rank": 2, "alpha": 16.0, "targets": [], "dropout": 0.0}}
    assert to_dict(build({"model": {"name": f"{__name__}:Net", "lora": {"rank": 2}}}))["model"] == plain


def test_what_trainable_names_trains_beside_the_adapters(tmp_path):
    module = LoRA(rank=2, targets=("body.1",)).into(Net(), beside=["head.*"])
    assert {name for name, p in module.named_parameters() if p.requires_grad} >= {"head.weight", "head.bias"}
    table = small(tmp_path, {"lora": {"rank": 2, "targets": ["body.1"]}, "trainable": ["head.*"]})
    spec = FlatSpec.of(fedddp.run(table).module)
    assert {n.partition(".")[0] for n in spec.names} == {"body", "head"}
    assert spec.num_trainable == 2 * (64 + 6) + 6 * 4 + 4


def test_a_name_that_ends_like_a_target_is_no_target():
    module = LoRA(rank=2, targets=("inner.0",)).into(
        nn.ModuleDict({"inner": nn.Sequential(nn.Linear(3, 3)), "0": nn.Sequential(nn.Linear(3, 3))})
    )
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [f"inner.0.{end}" for end in ADAPTERS]


def test_training_begins_with_the_model_as_it_was():
    net, x = Net(), torch.randn(3, 1, 8, 8)
    assert torch.equal(LoRA(rank=2).into(copy.deepcopy(net))(x), net(x))


REFUSED = [
    ({"lora": {"rank": 2, "targets": ["q_proj"]}},
     "model.lora.targets=['q_proj']: 'q_proj' matches no linear layer; there are "),
    ({"lora": {"rank": -1}}, "model.lora.rank=-1: "),
    ({"lora": {"ranks": 1}}, "model.lora.ranks: unknown key; did you mean "),
    ({"lora": 4}, "model.lora=4: expected a section"),
    ({"checkpointing": True}, "model.checkpointing=true: Net has no blocks"),
    ({"checkpointing": True, "lora": {"rank": 2}}, "model.checkpointing=true: Net has no blocks"),
    ({"name": "lstm", "lora": {"rank": 2}}, "model.name='lstm': "),
]  # fmt: skip


@pytest.mark.parametrize(("section", "says"), REFUSED)
def test_a_mistake_is_one_line(tmp_path, section, says):
    assert refused_by(tmp_path, {"name": f"{__name__}:Net", **section}, data__args={"shape": [1, 8, 8]}).startswith(
        says
    )


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UsageError, match=r"^model.lora.rank=2: the model has no linear layer"):
        LoRA(rank=2).into(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_without_the_library_a_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'fedddp[llm]'" in refused_by(tmp_path, {"name": "mlp", "lora": {"rank": 2}})


def test_clients_with_dropout_train_one_by_one(tmp_path, model):
    trainer, why = llama.prepared(tmp_path, model | {"lora": {**llama.LORA, "dropout": 0.5}}).trainer
    assert not isinstance(trainer, VectorizedTrainer), why


def test_blocks_are_computed_again_in_the_backward_pass(tmp_path, monkeypatch):
    from fedddp.models.sequence import Block

    calls, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or forward(self, x))
    ends = {}
    for again in (False, True):
        calls.clear()
        gpt = {"name": "gpt", "width": 8, "heads": 2, "layers": 2, "checkpointing": again}
        ends[again] = fedddp.run(
            llama.table(tmp_path / str(again), gpt), dataset=llama.data()[0], partition=llama.data()[1]
        ).w
        ends[again, "calls"] = sum(calls)
    assert torch.equal(ends[False], ends[True])
    assert ends[True, "calls"] == 2 * ends[False, "calls"]
