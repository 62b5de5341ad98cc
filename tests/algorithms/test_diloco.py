"""DiLoCo and data parallelism as points of one configuration space, against plain loops of torch.optim."""

import pytest
import torch
import torch.nn.functional as F

from fedddp.data import Dataset, Examples
from fedddp.data.batches import plan
from fedddp.federation import federate
from fedddp.models import ImportedModule
from fedddp.tasks import Task
from tests.helpers.support import assemble

WORKERS, SIZE, BATCH, FEATURES, CLASSES = 4, 22, 5, 6, 3


def net():
    layers = torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
    return torch.nn.Sequential(*layers)


def double():
    return net().double()


MAKE = {"float64": double, "float32": net}


def data():
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(WORKERS * SIZE, FEATURES, generator=stream, dtype=torch.float64)
    return x, torch.randint(CLASSES, (len(x),), generator=stream)


X, Y = data()
OUTER = {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}
INNER = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


def federation(folder, rounds, client, algorithm, precision="float64"):
    dataset = Dataset(Examples(X, Y), Examples(X, Y), CLASSES, mean=(0.0,), std=(1.0,))
    return assemble(
        folder,
        dataset,
        (SIZE,) * WORKERS,
        task=Task(MAKE[precision], CLASSES),
        model=ImportedModule("tests:net", MAKE[precision]),
        client={"precision": precision, "batch_size": BATCH, "order": "continue", **client},
        algorithm=algorithm,
        run={"rounds": rounds},
    )


def batch(k, step):
    """Worker k's examples of a step, numbered from the beginning of the run."""
    order = plan([SIZE], [k], 0, batch_size=BATCH, seed=0, steps=torch.tensor([1]), done=torch.tensor([step]))
    return order.index[0, 0][order.mask[0, 0]] + k * SIZE


def loss(module, rows):
    p = next(module.parameters())
    return F.cross_entropy(module(X[rows].to(p)), Y[rows])


def loaded(w):
    module = net().to(w.dtype)
    torch.nn.utils.vector_to_parameters(w.clone(), module.parameters())
    return module


def flat(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


def data_parallel(w, steps, optimizer):
    """One optimizer on the mean of the workers' gradients; the state after each step."""
    module = loaded(w)
    descent = optimizer(module.parameters())
    for step in range(steps):
        descent.zero_grad()
        (sum(loss(module, batch(k, step)) for k in range(WORKERS)) / WORKERS).backward()
        descent.step()
        yield flat(module)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_one_step_a_round_is_data_parallel_sgd_over_20_steps(tmp_path, precision, tolerance):
    client = {"local_steps": 1, "optimizer": {"lr": 0.3}}
    f, state = federation(tmp_path, 20, client, {"server_optimizer": {"name": "sgd", "lr": 1.0}}, precision)
    start = state.w
    for t, w in enumerate(data_parallel(start, 20, lambda p: torch.optim.SGD(p, lr=0.3))):
        state = federate(f.until(t + 1), state)
        assert (state.w - w).abs().max() <= tolerance
    assert (state.w - start).abs().max() > 0.1


def test_one_step_a_round_with_adamw_on_the_server_is_data_parallel_adamw(tmp_path):
    client = {"local_steps": 1, "optimizer": {"lr": 1.0}}
    f, state = federation(tmp_path, 20, client, {"server_optimizer": INNER})
    start = state.w
    steps = data_parallel(start, 20, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    for t, w in enumerate(steps):
        state = federate(f.until(t + 1), state)
        assert (state.w - w).abs().max() <= 1e-9  # a step divides by the root of small squares
    assert (state.w - start).abs().max() > 0.05


def diloco(w, outer_steps, h):
    """Algorithm 1 of Douillard et al. 2023: AdamW inside, never reset, and Nesterov outside."""
    outer = torch.nn.Parameter(w.clone())
    nesterov = torch.optim.SGD([outer], lr=0.7, momentum=0.9, nesterov=True)
    workers = [net().to(w.dtype) for _ in range(WORKERS)]
    inner = [torch.optim.AdamW(worker.parameters(), lr=0.01, weight_decay=0.1) for worker in workers]
    for t in range(outer_steps):
        ends = []
        for k, (worker, descent) in enumerate(zip(workers, inner, strict=True)):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(outer.detach().clone(), worker.parameters())
            for step in range(t * h, (t + 1) * h):
                descent.zero_grad()
                loss(worker, batch(k, step)).backward()
                descent.step()
            ends.append(flat(worker))
        outer.grad = outer.detach() - torch.stack(ends).mean(dim=0)
        nesterov.step()
        yield outer.detach().clone()


@pytest.mark.parametrize("execution", [{"name": "sequential"}, {"name": "vectorized", "width": 2}], ids=["one", "two"])
def test_diloco_is_the_papers_algorithm_over_5_outer_steps(tmp_path, execution):
    client = {"local_steps": 7, "optimizer": INNER, "optimizer_state": "keep", "execution": execution}
    f, state = federation(tmp_path, 5, client, {"server_optimizer": OUTER})
    start = state.w
    for t, w in enumerate(diloco(start, 5, 7)):
        state = federate(f.until(t + 1), state)
        assert (state.w - w).abs().max() <= 1e-11
    assert (state.w - start).abs().max() > 0.1
