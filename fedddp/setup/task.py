"""The task of a run, from the sections task, loss and model, and what other sections ask of it."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..config import Config, UsageError, chosen
from ..data import Dataset, Normalizer, check_range
from ..errors import reason
from ..flat import cast
from ..models.weights import started_from
from ..tasks import Task
from ..tasks.losses import check as check_loss


def task_of(config: Config, dataset: Dataset, given: Task | None = None) -> Task:
    """The task ``given``, or else the one that the configuration describes, on ``dataset``.

    Lazy layers (`nn.LazyLinear`) of its model have their sizes. Raises UsageError naming key and remedy.
    """
    if given:
        return _sized(config, given, dataset)
    task = _sized(config, _described(config, dataset), dataset)
    return dataclasses.replace(task, make_model=started_from(config.model, task.make_model))


def check_dataset(config: Config, dataset: Dataset) -> None:
    """Whether the inputs stay finite in the run's precision. Raises UsageError."""
    try:
        for examples in (dataset.train, dataset.test):
            check_range(examples.x, _precision(config))
    except ValueError as error:
        raise UsageError(f"dataset: {error}") from None


def check_task(config: Config, task: Task) -> None:
    """Whether the task has what other sections rely on. Raises UsageError."""
    if task.classifies:
        return
    name = chosen(config, "task")
    if config.evaluate.target_accuracy is not None:
        target = f"evaluate.target_accuracy={config.evaluate.target_accuracy:g}"
        raise UsageError(f"{target}: {name} has no accuracy; write evaluate.target_accuracy=off")
    if config.evaluate.personal_every:
        raise UsageError(
            f"evaluate.personal_every={config.evaluate.personal_every}: {name} has no accuracy; use personal_every=0"
        )
    if getattr(config.algorithm, "contrasts", False):
        raise UsageError(
            f"{chosen(config, 'algorithm')}: compares features of a classifier, which "
            f"{name} has not; use fedavg or fedprox"
        )
    if config.privacy.level == "example":
        raise UsageError(
            f"privacy.level='example': an example of {name} has no gradient of its own to clip; use level client"
        )


def _precision(config: Config) -> torch.dtype:
    return torch.float64 if config.client.precision == "float64" else torch.float32  # bfloat16 is arithmetic only


def _described(config: Config, dataset: Dataset) -> Task:
    shape, num_classes, dtype = tuple(dataset.train.x.shape[1:]), dataset.num_classes, _precision(config)
    try:
        check_loss(config.loss, num_classes)
        return config.task.build(lambda: cast(config.model.build(shape, num_classes), dtype), config.loss, dataset)
    except ValueError as error:
        raise UsageError(f"{chosen(config, 'loss')}: {error}") from error


def _sized(config: Config, task: Task, dataset: Dataset) -> Task:
    """``task`` with a model whose lazy layers know their sizes, from one training example, wherever it is built."""
    name, seed = chosen(config, "model"), config.run.seed
    try:
        tensors = _tensors(task.model(seed))
        if not any(map(is_lazy, tensors)):
            return task
        dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        normalize = Normalizer(dataset.mean, dataset.std, dtype, torch.device("cpu"))
        x, y, make = normalize(dataset.train.x[:1]), dataset.train.y[:1], task.make_model

        def complete() -> nn.Module:
            module = make()
            with torch.no_grad():
                task.outputs(module.eval(), x, y)
            return module.train()

        task = dataclasses.replace(task, make_model=complete)
        left = [type(part).__name__ for part in task.model(seed).modules() if any(map(is_lazy, part.parameters(False)))]
    except Exception as error:
        raise UsageError(f"{name}: {reason(error)}") from error
    if left:
        raise UsageError(f"{name}: {left[0]} gets no size from an example, since forward does not use it; set its size")
    return task


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
