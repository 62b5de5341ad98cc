"""Models that do not train on one example: a last batch of one joins the batch before."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedddp.algorithms import FedNova, Scaffold
from fedddp.config import UsageError
from fedddp.federation import federate
from fedddp.models import CNN, MLP, ImportedModule, ResNet
from tests.helpers.support import assemble, few_digits

NORMED = MLP(hidden=6, norm="batch")
SMALL = ResNet(depth=8, width=0.5)  # of 4 channels (0.25), torch 2.13 crashed in oneDNN on a CPU without AVX-512
SIZES = (11, 21, 6, 12)  # with batches of 5: one left over in the first three


class Squeezed(nn.Module):
    """No statistics of a batch, but a batch of one loses its axis."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, x):
        return self.head(x.flatten(1).squeeze(0))[..., None].squeeze(-1)


def federation(folder, sizes, model, *, batch_size=5, **sections):
    client = {"batch_size": batch_size, **sections.pop("client", {})}
    return assemble(folder, few_digits(sum(sizes), 8), sizes, model=model, client=client, **sections)


def trained(folder, sizes, model, **sections):
    f, server = federation(folder, sizes, model, **sections)
    federate(f.until(1), server)
    return f.telemetry.history[-1]


@pytest.mark.parametrize("more", [{}, {"local_steps": 7}, {"local_epochs": 3, "stragglers": 0.5}])
@pytest.mark.parametrize("model", [NORMED, ImportedModule("tests:Squeezed", Squeezed)], ids=["batch norm", "squeeze"])
def test_every_client_takes_part(tmp_path, model, more):
    metrics = trained(tmp_path, SIZES, model, client=more)
    assert (metrics["participants"], metrics["failures"]) == (4, 0)


@pytest.mark.parametrize("algorithm", [FedNova(), Scaffold()])
def test_steps_that_are_divided_by_are_those_that_were_taken(tmp_path, algorithm):
    f, server = federation(tmp_path, SIZES, NORMED, algorithm=algorithm, client={"local_epochs": 2})
    local = f.trainer.on((0,), 0)
    assert local.train(server.w).steps.tolist() == [4]
    assert f.schedule.work(f.schedule.sizes).tolist() == [2 * 2 * 5, 2 * 4 * 5, 2 * 1 * 5, 2 * 3 * 5]
    federate(f.until(1), server)
    assert f.telemetry.history[-1]["failures"] == 0


@pytest.mark.parametrize(
    "model",
    [MLP(hidden=6), MLP(hidden=6, norm="layer"), CNN(), SMALL, replace(SMALL, norm="batch")],
    ids=["plain", "layer norm", "cnn", "group norm", "batch norm of maps"],
)
def test_models_that_train_on_one_example_keep_their_batches(tmp_path, model):
    f, server = federation(tmp_path, (11,), model, client={"execution": {"name": "sequential"}})
    assert f.trainer.on((0,), 0).train(server.w).steps.tolist() == [3]


def test_batches_of_one_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^client\.batch_size=1: model\.name='mlp'"):
        federation(tmp_path, SIZES, NORMED, batch_size=1)
    federation(tmp_path, SIZES, MLP(hidden=6), batch_size=1)


def test_clients_with_one_example_are_counted_at_start(tmp_path, logged):
    f, server = federation(tmp_path, (11, 1, 6, 1), NORMED)
    assert any("2 of 4 clients have a single example" in line for line in logged)
    federate(f.until(1), server)
    assert [f.telemetry.history[-1][key] for key in ("participants", "failures")] == [2, 2]


def test_clients_that_all_have_one_example_are_refused(tmp_path):
    with pytest.raises(UsageError) as refused:
        federation(tmp_path, (1, 1, 1), NORMED)
    assert (refused.value.key, refused.value.code) == ("model.name", "single-examples")


def test_one_example_left_after_a_holdout_counts(tmp_path, logged):
    federation(tmp_path, (2, 11, 6), NORMED, evaluate={"every": 0, "holdout": 0.2})
    assert any("1 of 3 clients" in line for line in logged)


@pytest.mark.parametrize("sizes", [(11, 21), (6, 16)])
def test_batched_clients_end_where_single_ones_do(tmp_path, sizes):
    """A model that can be batched and wants two examples: its last layer looks at the batch only in its shape."""

    class Fussy(nn.Linear):
        def forward(self, x):
            if self.training and x.shape[0] == 1:
                raise ValueError("one example")
            return super().forward(x.flatten(1))

    model = ImportedModule("tests:Fussy", Fussy, {"in_features": 784, "out_features": 10})
    ends = []
    for name in ("sequential", "vectorized"):
        f, server = federation(tmp_path / name, sizes, model, client={"execution": {"name": name}})
        assert f.trainer.width == (1 if name == "sequential" else 2)
        blocks = [(0,), (1,)] if name == "sequential" else [(0, 1)]
        ends.append(torch.cat([f.trainer.on(ids, 0).train(server.w).delta for ids in blocks]))
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("more", [{"local_epochs": 10_000}, {"local_steps": 1_000_000}])
def test_a_round_that_looks_at_too_many_examples_is_refused(tmp_path, more):
    """Its plan would take gigabytes."""
    sizes = (8_000, 3)
    with pytest.raises(UsageError, match=rf"^client\.{next(iter(more))}=.*8000 examples"):
        federation(tmp_path, sizes, MLP(hidden=6), batch_size=100, client=more)


def test_fewer_clients_train_at_once_where_their_plan_is_long(tmp_path):
    f, _ = federation(tmp_path, (150,) * 64, MLP(hidden=6), client={"local_epochs": 10_000})
    assert f.trainer.width == 2**26 // 1_500_000
    f, _ = federation(tmp_path / "b", (150,) * 64, MLP(hidden=6))
    assert f.trainer.width == 64
