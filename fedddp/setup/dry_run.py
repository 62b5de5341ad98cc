"""Build the task of a run, and try its model on a few of the run's own examples before the ranks connect."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..clients import LocalTrainingSpec, SequentialTrainer
from ..config import Config, ResolvedConfig, chosen
from ..data import ClientData, Dataset, Examples, Normalizer, Partition, Work, check_range, extreme_batches
from ..data.targets import TARGETS
from ..errors import OWN_CODE, UsageError, first_line, named, out_of_memory, reason
from ..evaluation.server import BATCH
from ..flat import FlatModule, FlatSpec, cast, flatten
from ..models.residual import with_residuals
from ..models.weights import started_from, trained_in_part
from ..rng import global_seed
from ..tasks import TASKS, Task, natural_loss, num_outputs, targets_of
from ..tasks.losses import CLASSES, Natural
from ..tasks.losses import check as check_loss
from .size import check_size

LARGEST = 16
"""Most examples of a trial step: what runs on so many runs on more, and even a deep network takes under a second."""


def task_of(config: Config, dataset: Dataset, given: Task | None = None, *, start: bool = True) -> Task:
    """Return the task ``given``, or else the one that the configuration describes for ``dataset``.

    Lazy layers (`nn.LazyLinear`) of its model have their sizes. Raises UsageError naming key and remedy.

    Args:
        config: the configuration.
        dataset: the data, or one blank example of their form.
        given: replaces the sections task, loss and model.
        start: whether the model has the weights that training starts from; without, any.
    """
    kind = given.targets if given else targets_of(config.task)
    if kind != dataset.targets:
        learned, there = (TARGETS[kind].words for kind in (kind, dataset.targets))
        fitting = next(name for name, cls in TASKS.items() if targets_of(cls) == dataset.targets)
        raise UsageError(
            f"{chosen(config, 'task')}: learns {learned}; the targets of data.name={config.data.name!r} are {there}: "
            f"use task.name={fitting}",
            code="task-targets",
        )
    task = given or _configured(config, dataset)
    task = _sized(config, replace(task, make_model=_taking(dataset, task.make_model)), dataset)
    section = None if given else config.model
    made = started_from(section, task.make_model) if start else task.make_model
    trained = trained_in_part(section, made)
    moves = config.algorithm.traits.moves_base
    return replace(task, make_model=(lambda: with_residuals(trained())) if moves else trained)


def _taking(dataset: Dataset, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return ``make``; its modules take rows of inputs of several tensors, where the dataset has such."""
    layout = dataset.layout
    if layout is None:
        return make

    def build() -> nn.Module:
        module = make()
        module.register_forward_pre_hook(layout, with_kwargs=True)
        return module

    return build


def check_dataset(config: Config, dataset: Dataset) -> None:
    """Raise UsageError if the inputs do not stay finite in the run's precision."""
    with named("dataset"):
        for examples in (dataset.train, dataset.test):
            check_range(examples.x, _precision(config))


def _precision(config: Config) -> torch.dtype:
    return torch.float64 if config.client.precision == "float64" else torch.float32  # bfloat16 is arithmetic only


def _configured(config: Config, dataset: Dataset) -> Task:
    dtype, natural = _precision(config), natural_loss(config.task)
    loss = natural if config.loss == Natural() else config.loss
    try:
        shape, count = dataset.shape, num_outputs(config.task, dataset)  # once; the task does not keep the examples
        check_loss(loss, getattr(natural, "targets", CLASSES)[0], count)
        task = config.task.build(lambda: cast(config.model.build(shape, count), dtype), loss, dataset)
    except ValueError as error:
        raise UsageError(f"{chosen(config, 'loss')}: {error}") from error
    check_size(chosen(config, "model"), config.model, shape, count)
    return task


def _sized(config: Config, task: Task, dataset: Dataset) -> Task:
    """Return ``task`` with the sizes of its model's lazy layers, inferred from one training example."""
    seed = config.run.seed
    try:
        tensors = _tensors(task.model(seed))
        if not any(map(is_lazy, tensors)):
            return task
        dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        x, y, make = dataset.normalizer(dtype)(dataset.train.x[:1]), dataset.train.y[:1], task.make_model

        def complete() -> nn.Module:
            module = make()
            with torch.no_grad():
                task.outputs(module.eval(), x, y)
            return module.train()

        task = replace(task, make_model=complete)
        left = [type(part).__name__ for part in task.model(seed).modules() if any(map(is_lazy, part.parameters(False)))]
    except UsageError:
        raise
    except OWN_CODE as error:
        raise UsageError(f"{chosen(config, 'model')}: {reason(error)}") from error
    if left:
        raise UsageError(
            f"{chosen(config, 'model')}: {left[0]} gets no size from an example, since forward does not use it; set its"
            " size"
        )
    return task


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def laid_out(
    config: ResolvedConfig, task: Task, dataset: Dataset, device: torch.device, ranks: int
) -> tuple[nn.Module, FlatSpec]:
    """Build the model and score two training and two test examples in evaluation mode.

    A single example is scored, too, if an evaluation on ``ranks`` ranks ends with a batch of one.

    Returns:
        The initial model and the layout of its flat vector.

    Raises:
        UsageError: the model cannot be trained, does not run on the data, or does not follow ``run.seed``.
    """
    try:
        module = task.model(config.run.seed)
        spec, flat = FlatSpec.of(module, whole=True), FlatModule(task.model(config.run.seed), device)
        flat.module.eval()
    except UsageError:
        raise
    except OWN_CODE as error:
        raise _model_error(config, reason(error)) from error
    if not _alike(module, flat.module):
        raise _model_error(
            config,
            "two models of one run.seed differ: it draws from a generator that has no seed, or leaves parameters "
            "uninitialised; draw from torch, numpy.random or random, and set every parameter",
        )
    per_rank = {-(-len(dataset.test) // ranks), len(dataset.test) // ranks}
    alone = [_few(dataset.test, 1)] if any(n % BATCH == 1 for n in per_rank) else []
    for examples in (_few(dataset.train, 2), _few(dataset.test, 2), *alone):
        _score(config, task, flat.module, dataset.normalizer(spec.dtype, device), examples.to(device))
    if FlatSpec.of(flat.module) != spec:
        raise _model_error(config, "its forward adds parameters, which no optimizer has; make them in its constructor")
    return module, spec


def rehearse(
    config: ResolvedConfig, task: Task, module: nn.Module, dataset: Dataset, sizes: Tensor, spec: LocalTrainingSpec
) -> None:
    """Take a training step from ``module`` on a batch of the largest and one of the smallest size that will occur.

    Both are made of two training examples.

    Args:
        sizes: the number of training examples of each client, [N].
        spec: how clients train.

    Raises:
        UsageError: a step fails.
    """
    work, device, dtype = spec.work, spec.device, spec.dtype
    extremes = extreme_batches(sizes, work.batch_size, work.steps, work.smallest)
    batches = [*dict.fromkeys(min(n, LARGEST) for n in extremes if n)]
    few = _few(dataset.train, 2)
    rows = torch.arange(sum(batches)) % len(few)
    examples = Examples(few.x[rows], few.y[rows])
    partition = Partition.dealt(np.arange(len(rows)), np.array(batches))
    once = replace(spec, work=Work(batch_size=0, smallest=work.smallest))
    problem, n = "cannot be trained", 0
    try:
        data = ClientData(examples, partition, dataset.normalizer(dtype, device), device=device)
        trainer = SequentialTrainer(task, data, once)
        for client, n in enumerate(batches):
            problem = f"a training step on {_described(examples.x[:n])} fails"
            trainer.on((client,), 0).train(flatten(module).to(device, dtype))
    except OWN_CODE as error:
        raise _failed(config, problem, error, n) from error


def fails_alone(config: ResolvedConfig, task: Task, inputs: Tensor, y: Tensor) -> str:
    """Return the error of a training step on the first of two examples, if one on both succeeds; else an empty text.

    That is BatchNorm where a channel has one value for each example.

    Args:
        config: the configuration.
        task: makes the model.
        inputs: two examples, as the model takes them.
        y: their targets.
    """
    module = task.model(config.run.seed).train()
    parameters = [p for p in module.parameters() if p.requires_grad]

    def failure(n: int) -> str:
        try:
            with global_seed(config.run.seed, "trial"):
                loss = task.loss(task.outputs(module, inputs[:n], y[:n]), y[:n]).mean()
                torch.autograd.grad(loss, parameters, allow_unused=True)
        except OWN_CODE as error:
            return first_line(error)
        return ""

    return "" if failure(2) else failure(1)


def two_examples(dataset: Dataset, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two training examples as the model takes them, on the CPU, and their labels."""
    few = _few(dataset.train, 2)
    return dataset.normalizer(dtype)(few.x), few.y


def _few(examples: Examples, n: int) -> Examples:
    """Return ``n`` examples; of integers those with the largest and the smallest, which a vocabulary must contain."""
    rows = torch.arange(n) % len(examples)
    x = examples.x
    if not (x.is_floating_point() or x.is_complex() or x.dtype == torch.uint8) and x[0].numel():
        flat = x.flatten(1)
        rows = torch.stack([flat.amax(dim=1).long().argmax(), flat.amin(dim=1).long().argmin()])[:n]
    return Examples(x[rows], examples.y[rows])


def _score(config: ResolvedConfig, task: Task, module: nn.Module, normalize: Normalizer, examples: Examples) -> None:
    def outputs(x: Tensor) -> Tensor:
        with torch.no_grad(), global_seed(config.run.seed, "evaluate"):
            found = task.outputs(module, x, examples.y)
            if task.draws:
                task.loss(found, examples.y)
            return found

    n = len(examples)
    try:
        found = outputs(normalize(examples.x))
    except OWN_CODE as error:
        if wrong := _other_dtype(config, examples.x, normalize.dtype, outputs, error):
            raise UsageError(wrong) from error
        raise _failed(config, f"does not run on {_described(examples.x)}", error, n) from error
    if task.draws:
        return
    shape = task.output_shape(examples.y)
    if not isinstance(found, Tensor) or found.shape != shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise _model_error(config, f"should give {list(shape)} scores for {n} examples, gives {got}")
    if bad := int((found.isnan() | found.isposinf()).sum()):
        raise _model_error(
            config,
            f"{bad} of {found.numel()} scores of {n} examples are NaN or infinite before any training; initialise the "
            "model with smaller numbers, or scale the inputs",
        )


def _other_dtype(
    config: ResolvedConfig, x: Tensor, dtype: torch.dtype, outputs: Any, error: BaseException
) -> str | None:
    """Return the message for a model that runs on these inputs as another dtype; None if it does not."""
    measured = x.is_floating_point() or x.dtype == torch.uint8
    other = x.long() if measured else x.to(dtype)
    try:
        outputs(other)
    except OWN_CODE:
        return None
    kind = str(x.dtype).removeprefix("torch.")
    remedy = "give token ids as int64" if measured else "give measurements as float32, pixels as uint8"
    pixels = " (pixels, which become floating point)" if x.dtype == torch.uint8 else ""
    return (
        f"data.name={config.data.name!r}: inputs are {kind}{pixels}, on which {chosen(config, 'model')} does not run "
        f"({reason(error)}); {remedy}"
    )


def _model_error(config: ResolvedConfig, text: str) -> UsageError:
    return UsageError(f"{chosen(config, 'model')}: {text}")


def _failed(config: ResolvedConfig, problem: str, error: BaseException, n: int) -> UsageError:
    """Return the error for a model that failed on ``n`` examples, with a remedy where the cause is known."""
    if memory := out_of_memory(error):
        return _model_error(config, f"{problem}: {memory}")
    remedy = ""
    if isinstance(error, IndexError) and "out of range" in str(error):
        remedy = "; token ids are counted from 0: give the model an embedding with a row for the largest of them"
    if n == 1 and "more than 1 value per channel" in str(error):
        remedy = (
            "; a client has a batch of one, of which BatchNorm takes no statistics: use GroupNorm, another "
            f"client.batch_size than {config.client.batch_size}, or clients with more examples"
        )
    return _model_error(config, f"{problem} ({reason(error)}){remedy}")


def _described(x: Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    span = "" if x.is_floating_point() or x.is_complex() or not x.numel() else f" from {int(x.min())} to {int(x.max())}"
    return f"inputs of shape {list(x.shape)}, {kind}{span}"


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules have equal parameters and buffers, constants included."""
    pairs = zip((*one.parameters(), *one.buffers()), (*other.parameters(), *other.buffers()), strict=True)
    return all(a.shape == b.shape and torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num()) for a, b in pairs)
