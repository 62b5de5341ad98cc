"""One step through the real path, on a few of the run's own examples: does the model fit the data?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..clients import SequentialTrainer, compared_layer
from ..config import Config, UsageError, chosen
from ..data import ClientData, Dataset, Examples, Normalizer, Partition, extreme_batches
from ..errors import reason
from ..evaluation.server import BATCH
from ..flat import FlatModule, FlatSpec, flatten
from ..rng import global_seed
from ..tasks import Task

LARGEST = 16
"""Examples of a dry step: one that runs on so many runs on more, and even a deep network takes part of a second."""


def laid_out(
    config: Config, task: Task, dataset: Dataset, device: torch.device, ranks: int
) -> tuple[nn.Module, FlatSpec]:
    """The model and its layout, after it has scored two training and two test examples in evaluation mode.

    It scores one alone, too, where an evaluation on ``ranks`` ranks ends with a batch of one.

    Raises UsageError for a model that cannot be trained, does not run on the data or does not follow ``run.seed``.
    """
    name = chosen(config, "model")
    try:
        module = task.model(config.run.seed)
        spec, flat = FlatSpec.of(module), FlatModule(task.model(config.run.seed), device)
        flat.module.eval()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{name}: {reason(error)}") from error
    if not _alike(module, flat.module):
        raise UsageError(
            f"{name}: two models of one run.seed differ: it draws from a generator that has no seed, or leaves numbers "
            "as memory had them; draw from torch, numpy.random or random, and set every parameter"
        )
    if getattr(config.algorithm, "contrasts", False):
        try:
            compared_layer(module)
        except ValueError as error:
            raise UsageError(f"{chosen(config, 'algorithm')}, {name}: {error}") from error
    shares = {-(-len(dataset.test) // ranks), len(dataset.test) // ranks}
    alone = [_few(dataset.test, 1)] if any(n % BATCH == 1 for n in shares) else []
    for examples in (_few(dataset.train, 2), _few(dataset.test, 2), *alone):
        normalize = Normalizer(dataset.mean, dataset.std, spec.dtype, device)
        _score(config, task, flat.module, normalize, examples.to(device))
    if FlatSpec.of(flat.module) != spec:
        raise UsageError(f"{name}: its forward adds parameters, which no optimizer has; make them in its constructor")
    return module, spec


def rehearse(
    config: Config, task: Task, module: nn.Module, dataset: Dataset, sizes: Tensor, how: dict[str, Any]
) -> None:
    """One training step each from where ``module`` is: on a batch of B, and on the smallest of clients of these sizes.

    Both are made of two training examples. ``how``: the trainers' keywords. Raises UsageError.
    """
    work, device, dtype = config.client, how["device"], how["dtype"]
    extremes = extreme_batches(sizes, work.batch_size, work.local_steps, how["smallest_batch"])
    batches = [*dict.fromkeys(min(n, LARGEST) for n in extremes if n)]
    few = _few(dataset.train, 2)
    rows = torch.arange(sum(batches)) % len(few)
    examples = Examples(few.x[rows], few.y[rows])
    normalize = Normalizer(dataset.mean, dataset.std, dtype, device)
    partition = Partition.dealt(np.arange(len(rows)), np.array(batches))
    once = {"local_epochs": 1, "local_steps": None, "stragglers": 0.0, "batch_size": 0}
    how = {name: value for name, value in (how | once).items() if name not in ("name", "width")}
    problem, n = "cannot be trained", 0
    try:
        trainer = SequentialTrainer(
            task, ClientData(examples, partition, normalize, device=device), work.optimizer, **how
        )
        for client, n in enumerate(batches):
            problem = f"a training step on {_described(examples.x[:n])} fails"
            trainer.on((client,), 0).train(flatten(module).to(device, dtype))
    except Exception as error:
        raise UsageError(_refusal(config, problem, error, n)) from error


def two_examples(dataset: Dataset, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two training examples as the model takes them, on the CPU, and their labels."""
    few = _few(dataset.train, 2)
    return Normalizer(dataset.mean, dataset.std, dtype, torch.device("cpu"))(few.x), few.y


def _few(examples: Examples, n: int) -> Examples:
    """``n`` examples; of whole numbers those with the largest and the smallest, which a vocabulary must hold."""
    rows = torch.arange(n) % len(examples)
    x = examples.x
    if not (x.is_floating_point() or x.is_complex() or x.dtype == torch.uint8) and x[0].numel():
        flat = x.flatten(1)
        rows = torch.stack([flat.amax(dim=1).long().argmax(), flat.amin(dim=1).long().argmin()])[:n]
    return Examples(x[rows], examples.y[rows])


def _score(config: Config, task: Task, module: nn.Module, normalize: Normalizer, examples: Examples) -> None:
    def outputs(x: Tensor) -> Tensor:
        with torch.no_grad(), global_seed(config.run.seed, "evaluate"):
            found = task.outputs(module, x, examples.y)
            if not task.classifies:
                task.loss(found, examples.y)
            return found

    n, name = len(examples), chosen(config, "model")
    try:
        found = outputs(normalize(examples.x))
    except Exception as error:
        problem = f"does not run on {_described(examples.x)}"
        raise UsageError(
            _other_dtype(config, examples.x, normalize.dtype, outputs, error) or _refusal(config, problem, error, n)
        ) from error
    if not task.classifies:
        return
    if not isinstance(found, Tensor) or found.shape != (n, task.num_classes):
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(f"{name}: should give [{n}, {task.num_classes}] scores for {n} examples, gives {got}")
    if bad := int((found.isnan() | found.isposinf()).sum()):
        raise UsageError(
            f"{name}: {bad} of {found.numel()} scores of {n} examples are NaN or infinite before any training; "
            "initialise the model with smaller numbers, or scale the inputs"
        )


def _other_dtype(config: Config, x: Tensor, dtype: torch.dtype, outputs: Any, error: Exception) -> str | None:
    """What to say if the model runs on these inputs as numbers of another kind; None if that is not it."""
    measured = x.is_floating_point() or x.dtype == torch.uint8
    other = x.long() if measured else x.to(dtype)
    try:
        outputs(other)
    except Exception:
        return None
    kind = str(x.dtype).removeprefix("torch.")
    remedy = "give token ids as int64" if measured else "give measurements as float32, pixels as uint8"
    pixels = " (pixels, which become floating point)" if x.dtype == torch.uint8 else ""
    return (
        f"data.name={config.data.name!r}: inputs are {kind}{pixels}, on which {chosen(config, 'model')} does not run "
        f"({reason(error)}); {remedy}"
    )


def _refusal(config: Config, problem: str, error: Exception, n: int) -> str:
    remedy = ""
    if n == 1 and "more than 1 value per channel" in str(error):
        remedy = (
            "; a client has a batch of one, of which BatchNorm takes no statistics: use GroupNorm, another "
            f"client.batch_size than {config.client.batch_size}, or clients with more examples"
        )
    return f"{chosen(config, 'model')}: {problem} ({reason(error)}){remedy}"


def _described(x: Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    span = "" if x.is_floating_point() or x.is_complex() or not x.numel() else f" from {int(x.min())} to {int(x.max())}"
    return f"inputs of shape {list(x.shape)}, {kind}{span}"


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same numbers, constants included."""
    if not torch.equal(flatten(one).cpu().nan_to_num(), flatten(other).cpu().nan_to_num()):
        return False
    pairs = zip(one.named_buffers(), other.named_buffers(), strict=True)
    return all(
        a.shape == b.shape and torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num()) for (_, a), (_, b) in pairs
    )
