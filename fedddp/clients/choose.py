"""Which trainer for this model on this device, and how many clients at once: a rule, checked by trying it out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..data import ClientData, Examples, Normalizer, Partition
from ..optim import SGD, Optimizer
from ..tasks import Task
from .folded import FoldedModel
from .local import Trainer
from .sequential import SequentialTrainer
from .vectorized import Oracle, VectorizedTrainer
from .vmapped import VmappedModel

PARAMETERS_AT_ONCE = {"cpu": 2**23, "cuda": 2**29}
"""K D: 32 MB of weights in float32 stay near a CPU's cores; 2 GB keep a GPU busy."""
MOST_CLIENTS = 64
SMALL_MODEL = 1_000_000
"""Parameters. On a CPU `vmap` gains up to 1.6 times below it (it saves launches) and nothing above (arithmetic)."""


Build = Callable[[nn.Module, "torch.device | str"], Oracle]

ORACLES: dict[str, Build] = {
    "layers folded over clients": FoldedModel,
    "layers folded over clients, contiguous": partial(FoldedModel, layout=torch.contiguous_format),
    "torch.func.vmap": VmappedModel,
}
"""The fastest first."""


def choose(
    task: Task,
    data: ClientData,
    optimizer: Optimizer,
    examples: Examples,
    *,
    name: str,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    **how: Any,
) -> tuple[Trainer, str]:
    """The trainer for ``client.execution.name`` and ``width`` (0 = as many clients as the rule says), and why.

    ``auto``: folded layers where the model consists of them, never slower than sequential here; else `vmap`, on a GPU
    or for a small model; else sequential. Batching is taken only if two clients of unequal size, trained by it in
    float64 on a few of ``examples``, end where sequential training takes them. ``how``: the trainers' keywords.
    """
    small = SequentialTrainer(task, data, optimizer, device=device, dtype=dtype, **how)
    if name == "sequential":
        return small, "sequential: as configured"
    reasons = []
    for told, build in ORACLES.items():
        try:
            _try_out(build, task, examples, how["seed"])
        except Exception as error:
            reasons.append(f"{told}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if name == "auto" and build is VmappedModel and device.type == "cpu" and small.spec.dim > SMALL_MODEL:
            return small, f"sequential: {told} gains nothing on a CPU for {small.spec.dim:,} parameters"
        k = width or max(1, min(MOST_CLIENTS, PARAMETERS_AT_ONCE[device.type] // small.spec.dim))
        oracle = build(task.model(how["seed"]).to(dtype), device)
        return VectorizedTrainer(task, data, optimizer, oracle, k, **how), f"vectorized: {k} clients at once, {told}"
    return small, f"sequential: this model cannot be batched over clients ({'; '.join(reasons)})"


def _try_out(build: Build, task: Task, examples: Examples, seed: int) -> None:
    """Raise ValueError if clients of 5 and 3 examples do not end where sequential training takes them."""
    few = Examples(examples.x[:8].cpu(), examples.y[:8].cpu())
    sizes = [min(5, len(few) - len(few) // 3), len(few) // 3]
    partition = Partition.dealt(torch.arange(sum(sizes)).numpy(), torch.tensor(sizes).numpy())
    data = ClientData(few, partition, Normalizer((0.5,), (0.5,), torch.float64, torch.device("cpu")))
    optimizer = SGD(lr=0.1)
    how: dict[str, Any] = {"local_epochs": 2, "batch_size": 3, "seed": seed}
    sequential = SequentialTrainer(task, data, optimizer, dtype=torch.float64, **how)
    oracle = build(task.model(seed).double(), "cpu")
    start = task.initial_params(seed).double()
    both = VectorizedTrainer(task, data, optimizer, oracle, 2, **how).on((0, 1), 0).train(start).w
    one_by_one = torch.cat([sequential.on((k,), 0).train(start).w for k in (0, 1)])
    if not torch.allclose(both, one_by_one, rtol=1e-9, atol=1e-11):
        raise ValueError("clients trained together end elsewhere than one by one")
