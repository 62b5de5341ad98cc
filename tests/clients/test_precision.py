"""client.precision: what computes in which precision, and that bfloat16 is close to float32 and nothing else is."""

import pytest
import torch
from torch import nn

from fedddp.clients import SequentialTrainer, VectorizedTrainer, choose
from fedddp.comm import Place
from fedddp.config import build
from fedddp.federation import federate
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from fedddp.tasks import Task
from tests.helpers.support import Recorder, assemble
from tests.helpers.zoo import CLASSES, FOLDED, SIZES, clients, dataset, images, normed, start_of, task_of, training

pytestmark = pytest.mark.slow

WITHOUT_AUTOCAST = "torch.func.vmap (folded layers do without autocast)"


class Watched(nn.Module):
    """Notes the precision of what its layers compute."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(36, CLASSES)
        self.seen = []

    def forward(self, x):
        x = self.conv(x)
        self.seen.append(x.dtype)
        x = self.head(torch.relu(x).flatten(1))
        self.seen.append(x.dtype)
        return x


def chosen(make, name="vectorized", dtype=torch.float32, autocast=True, **how):
    how = {"batch_size": 5, "seed": 3} | how
    data = clients(dtype=dtype)
    return choose(
        task_of(make, dtype), data, images(8), training(dtype=dtype, autocast=autocast, **how), name=name, width=10
    )


def prepared(tmp_path, precision):
    table = {"client": {"precision": precision}, "run": {"dir": str(tmp_path)}}
    small = {"data": {"partition": {"num_clients": len(SIZES)}}, "model": {"name": "logistic"}}
    data = dataset()
    config = resolve(build(table, small), Place())
    return prepare(config, Place(), data, config.data.partition.split(data.train.y.numpy(), 0))


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", "float32"), ("float32",) * 2, ("float64",) * 2])
def test_parameters_and_data_are_never_smaller_than_float32(tmp_path, precision, dtype):
    p = prepared(tmp_path, precision)
    assert p.spec.dtype == getattr(torch, dtype)
    assert p.data.normalize.dtype == p.spec.dtype


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", ["sequential", "vectorized"])
def test_layers_compute_in_bfloat16_and_clients_move_in_float32(name, autocast):
    made = []
    task = Task(lambda: made.append(Watched()) or made[-1], CLASSES)
    spec = training(dtype=torch.float32, autocast=autocast, seed=3)
    trainer, _ = choose(task, clients(dtype=torch.float32), images(8), spec, name=name, width=3)
    for module in made:
        module.seen.clear()
    result = trainer.on((0, 2, 3)[: trainer.width], 0).train(task.initial_params(3))
    computed = {dtype for module in made for dtype in module.seen}
    assert computed == {torch.bfloat16 if autocast else torch.float32}
    assert result.delta.dtype == torch.float32
    assert result.delta.isfinite().all()
    assert result.loss.isfinite().all()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("model", "tolerance"), [("mlp", 0.15), ("cnn", 0.15), ("logistic", 0.02)])
def test_sequential_and_vmap_are_as_close_as_bfloat16_is(model, tolerance):
    """And both are as close to float32. Numbers have 8 bits: some units switch over, some maxima lie elsewhere."""
    make = FOLDED[model]
    w = start_of(make, torch.float32)
    low, exact = (
        [chosen(make, name, autocast=autocast, batch_size=0)[0] for name in ("sequential", "vectorized")]
        for autocast in (True, False)
    )
    assert isinstance(low[1], VectorizedTrainer)
    ids = (0, 2, 3)
    together = low[1].on(ids, 0).train(w).delta
    one_by_one, reference = (torch.cat([t.on((k,), 0).train(w).delta for k in ids]) for t in (low[0], exact[0]))
    for a, b in ((together, one_by_one), (together, reference), (one_by_one, reference)):
        assert 0 < (a - b).norm() < tolerance * reference.norm()


def test_folded_layers_are_passed_over_and_it_is_said():
    trainer, why = chosen(FOLDED["mlp"])
    assert isinstance(trainer, VectorizedTrainer)
    assert why == f"vectorized: 10 clients at once, {WITHOUT_AUTOCAST}"
    assert chosen(normed)[1] == why


def test_a_model_that_vmap_refuses_is_trained_one_by_one():
    def make():
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, CLASSES))

    trainer, why = chosen(make, "auto")
    assert isinstance(trainer, SequentialTrainer)
    assert why.startswith(f"sequential: this model cannot be batched over clients ({WITHOUT_AUTOCAST}: 1.running_mean")


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_a_run_in_bfloat16_keeps_a_float32_server_and_evaluates_in_float32(tmp_path, execution):
    sink, make = Recorder(), FOLDED["logistic"]
    client = {"precision": "bfloat16", "execution": {"name": execution}}
    f, server = assemble(tmp_path, dataset(), SIZES, task=task_of(make, torch.float32), sinks=[sink], client=client)
    start = server.w.clone()
    server = federate(f.until(2), server)
    assert server.w.dtype == torch.float32
    assert not torch.equal(server.w, start)
    score = sink.records[-1].score
    logits = images().x[:8].float().flatten(1) @ server.w[:-CLASSES].view(CLASSES, 64).T + server.w[-CLASSES:]
    expected = nn.functional.cross_entropy(logits, images().y[:8]).item()
    assert score.loss == pytest.approx(expected, rel=1e-5)  # bfloat16 would be off by 1e-3
    assert torch.isfinite(sink.records[-1].report.loss).sum() == len(SIZES)
