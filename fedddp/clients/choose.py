"""Which trainer for this model on this device, and how many clients at once: a rule, checked by trying it out."""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from ..data import ClientData, Examples, Normalizer, Partition, Work
from ..errors import first_line
from ..flat import FlatSpec, training_in
from ..optim import CONSTANT, SGD
from ..tasks import Task
from .folded import FoldedModel
from .graphed import WARM_UP, GraphedModel
from .local import LocalTrainingSpec, Trainer
from .sequential import SequentialTrainer
from .vectorized import Descending, Oracle, VectorizedTrainer, VmappedModel

PARAMETERS_AT_ONCE = {"cpu": 2**23, "cuda": 2**29}
"""K D: 32 MB of weights in float32 stay near a CPU's cores; 2 GB keep a GPU busy."""
OUTPUTS_AT_ONCE = {"cpu": 2**26, "cuda": 2**30}
"""K B times the numbers that a model gives for an example: 256 MB and 4 GB in float32; a loss needs several times that.
Only models with large vocabularies reach it."""
MOST_CLIENTS = 64
SMALL_MODEL = 1_000_000
"""Parameters. On a CPU `vmap` gains up to 1.6 times below it (it saves launches) and nothing above (arithmetic)."""
LARGE_MODEL = 50_000_000
"""Parameters, frozen ones included."""


Build = Callable[[nn.Module, "torch.device | str"], Oracle]

VMAP = "torch.func.vmap"
ORACLES: dict[str, Build] = {
    "layers folded over clients": FoldedModel,
    "layers folded over clients, contiguous": partial(FoldedModel, layout=torch.contiguous_format),
    VMAP: VmappedModel,
}
"""The fastest first."""
AUTOCAST: dict[str, Build] = {f"{VMAP} (folded layers do without autocast)": partial(VmappedModel, autocast=True)}
"""The same in lower precision: a folded layer changes float32 weights in place, with operands of their precision."""
CLIENTS, BATCH = 4, 32
"""At most so many clients, and examples of a step."""
NO_RULE = "torch has no batching rule for a part of this model"


def choose(
    task: Task,
    data: ClientData,
    examples: Examples,
    spec: LocalTrainingSpec,
    *,
    name: str = "auto",
    width: int = 0,
    at_most: int = MOST_CLIENTS,
) -> tuple[Trainer, str]:
    """The trainer for ``client.execution.name`` and ``width`` (0 = as many clients as the rule says), and why.

    ``auto``: folded layers where the model consists of them (faster for plain SGD; docs/performance.md says where not);
    else `vmap`, on a GPU or for a small model; else sequential. Where torch has no batching rule for a part of the
    model, both ways are timed on a few steps. Batching is taken only if two clients of unequal size, trained by it in
    float64 on a few of ``examples``, end where sequential training takes them; on a GPU, replayed steps likewise.
    ``at_most``: how many clients a round has.
    """
    device, seed = spec.device, spec.seed
    small = SequentialTrainer(task, data, spec)
    if name == "sequential":
        return small, "sequential: as configured"
    if task.draws:
        return small, "sequential: this task draws noise of its own in every step"
    reasons = []
    for how, build in (AUTOCAST if spec.autocast else ORACLES).items():
        try:
            trial = build(task.model(seed).double(), device)
            gains = isinstance(trial, Descending) or device.type != "cpu" or small.spec.dim <= SMALL_MODEL
            if name == "auto" and not gains:  # found without trying out a large model
                return small, f"sequential: {how} gains nothing on a CPU for {small.spec.dim:,} parameters"
            _try_out(trial, task, examples, seed, device)
        except Exception as error:
            reasons.append(f"{how}: {first_line(error)}")
            continue
        finally:
            trial = None
            if _large(small.spec):
                gc.collect()  # a module with a forward of its own is a cycle: two copies in float64
        k = width or max(1, min(MOST_CLIENTS, at_most, small.planned_at_once, _fitting(small, task, examples, spec)))
        oracle = build(training_in(task.model(seed), spec.dtype), device)
        if isinstance(oracle, FoldedModel) and device.type == "cuda" and spec.optimizer.plain_lr is not None:
            oracle, found = _replayed(oracle, build, task, examples, seed, device)
            how = f"{how}, {found}"
        if name == "auto" and isinstance(oracle, VmappedModel):
            worse, found = slower(oracle, task, examples, spec, clients=k)
            if worse:
                return small, f"sequential: {how} {found}"
            how = f"{how}{found}"
        why = f"vectorized: {k} client{'s' if k > 1 else ''} at once, {how}"
        return VectorizedTrainer(task, data, spec, oracle, k, small), why
    return small, f"sequential: this model cannot be batched over clients ({'; '.join(reasons)})"


def _large(spec: FlatSpec) -> bool:
    return spec.num_frozen + spec.dim > LARGE_MODEL


def _fitting(small: SequentialTrainer, task: Task, examples: Examples, spec: LocalTrainingSpec) -> int:
    """How many clients together have at most `PARAMETERS_AT_ONCE` and `OUTPUTS_AT_ONCE`."""
    kind, largest = spec.device.type, max(1, int(small.data.sizes.max()))
    outputs = min(spec.work.batch_size or largest, largest) * math.prod(task.output_shape(examples.y[:1]))
    return min(PARAMETERS_AT_ONCE[kind] // small.spec.dim, OUTPUTS_AT_ONCE[kind] // max(1, outputs))


def _replayed(
    oracle: FoldedModel, build: Build, task: Task, examples: Examples, seed: int, device: torch.device
) -> tuple[Oracle, str]:
    """``oracle`` with its steps replayed as a CUDA graph if that works on trial, else as it is; and what was found."""
    try:
        model = build(task.model(seed).double(), device)
        assert isinstance(model, FoldedModel)
        trial = GraphedModel(model)
        _try_out(trial, task, examples, seed, device, epochs=WARM_UP + 2, rounds=2)
        if not trial.replayed:
            raise ValueError(trial.refused or "no step was recorded")
    except Exception as error:
        return oracle, f"steps not replayed as a CUDA graph ({first_line(error)})"
    return GraphedModel(oracle), "steps replayed as a CUDA graph"


def _try_out(
    oracle: Oracle,
    task: Task,
    examples: Examples,
    seed: int,
    device: torch.device,
    epochs: int = 2,
    rounds: int = 1,
) -> None:
    """Raise ValueError if two clients do not end where sequential training takes them.

    They have 5 and 3 examples; of a large model 2 and 1, since a step of it takes seconds.
    """
    n, batch_size, epochs = (3, 1, epochs - 1) if _large(oracle.spec) else (8, 3, epochs)
    few = Examples(examples.x[:n].cpu(), examples.y[:n].cpu())
    sizes = [min(5, len(few) - len(few) // 3), len(few) // 3]
    partition = Partition.dealt(torch.arange(sum(sizes)).numpy(), torch.tensor(sizes).numpy())
    data = ClientData(few, partition, Normalizer((0.5,), (0.5,), torch.float64, device), device=device)
    work = Work(epochs, batch_size=batch_size)
    spec = LocalTrainingSpec(SGD(lr=0.1), work, seed=seed, device=device, dtype=torch.float64)
    sequential, batched = SequentialTrainer(task, data, spec), VectorizedTrainer(task, data, spec, oracle, 2)
    start = task.initial_params(seed).to(device, torch.float64)
    for round in range(rounds):
        both = batched.on((0, 1), round).train(start).w
        one_by_one = torch.cat([sequential.on((k,), round).train(start).w for k in (0, 1)])
        if not torch.allclose(both, one_by_one, rtol=1e-9, atol=1e-11):
            raise ValueError("clients trained together end elsewhere than one by one")


def slower(
    oracle: VmappedModel,
    task: Task,
    examples: Examples,
    spec: LocalTrainingSpec,
    *,
    clients: int,
) -> tuple[bool, str]:
    """Whether ``oracle`` takes longer than one client after the other, and by how much, in words.

    Timed only where torch has no batching rule for an operation of the model, and does it client by client. One client
    at a time is not timed: then the choice does not depend on who else uses the machine.
    """
    k, b = max(2, min(clients, CLIENTS)), min(spec.work.batch_size or BATCH, BATCH)
    device, dtype = spec.device, spec.dtype
    some = Examples(examples.x[:b].cpu(), examples.y[:b].cpu())
    partition = Partition(np.arange(len(some)), np.zeros(k, dtype=np.int64), np.full(k, len(some)))  # all own the same
    data = ClientData(some, partition, Normalizer((0.5,), (0.5,), dtype, device), device=device)
    once = replace(spec, optimizer=SGD(), work=Work(batch_size=b), schedule=CONSTANT, clip_norm=None)
    together = VectorizedTrainer(task, data, once, oracle, k)
    start = task.initial_params(spec.seed).to(device, dtype)

    def seconds(trainer: Trainer) -> float:
        begun = time.perf_counter()
        for first in range(0, k, trainer.width):
            trainer.on(range(first, first + trainer.width), 0).train(start)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    seconds(together)  # what is done once
    if not oracle.falls_back:
        return False, ""
    if clients == 1:
        return True, f"gains nothing for one client at a time ({NO_RULE})"
    single = SequentialTrainer(task, data, once)
    seconds(single)
    both, one = (min(times) for times in zip(*((seconds(together), seconds(single)) for _ in range(2)), strict=True))
    if both >= one:
        return True, f"takes {both / one:.1f} times as long ({NO_RULE})"
    return False, f", {one / both:.1f} times as fast as sequential ({NO_RULE})"
