"""Build the task of a run from the sections task, loss and model."""

import dataclasses

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..config import Config, chosen
from ..data import Dataset, check_range
from ..errors import OWN_CODE, UsageError, named, reason
from ..flat import cast
from ..models.weights import started_from
from ..tasks import Task
from ..tasks.losses import check as check_loss


def task_of(config: Config, dataset: Dataset, given: Task | None = None) -> Task:
    """Return the task ``given``, or else the one that the configuration describes for ``dataset``.

    Lazy layers (`nn.LazyLinear`) of its model have their sizes. Raises UsageError naming key and remedy.
    """
    if given:
        return _sized(config, given, dataset)
    task = _sized(config, _described(config, dataset), dataset)
    return dataclasses.replace(task, make_model=started_from(config.model, task.make_model))


def check_dataset(config: Config, dataset: Dataset) -> None:
    """Raise UsageError if the inputs do not stay finite in the run's precision."""
    with named("dataset"):
        for examples in (dataset.train, dataset.test):
            check_range(examples.x, _precision(config))


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

        task = dataclasses.replace(task, make_model=complete)
        left = [type(part).__name__ for part in task.model(seed).modules() if any(map(is_lazy, part.parameters(False)))]
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
