"""Print and draw who owns what: the partition that a configuration describes, without training."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from ..comm import Place
from ..config import Config, UsageError, build
from ..data import ClientData, Dataset, Partition, write_partition
from ..data.partition import Ints
from ..data.targets import IGNORED
from ..setup.load import load_data
from ..setup.resolve import resolve
from ..telemetry import console, figures
from .outcome import asked

ROWS_PRINTED, COLUMNS_PRINTED = 40, 30  # clients, and labels where there are no more
COUNTS_AT_ONCE = 100_000  # of a client and a label: all at once would be gigabytes
IMAGES_OF, IMAGES_EACH = 8, 8  # clients in the picture of images, and examples of each


def _real(y: Tensor) -> dict[str, str]:
    return {f"target {i}": f"{c.mean():.4g} ({c.std(correction=0):.4g})" for i, c in enumerate(y.double().T)}


def _labels(y: Tensor) -> dict[str, str]:
    return {f"label {i}": str(n) for i, n in enumerate(y.long().sum(dim=0).tolist())}


def _positions(y: Tensor) -> dict[str, str]:
    counted = (y != IGNORED).sum(dim=1)
    return {"positions": str(int(counted.sum())), "longest": str(int(counted.max()) if len(counted) else 0)}


VALUES: dict[str, Callable[[Tensor], dict[str, str]]] = {"real": _real, "labels": _labels, "positions": _positions}
"""What is shown of targets that are no classes: mean (deviation), how often a label is 1, how many are predicted."""


def run(args: Namespace) -> None:
    """Print and draw what ``args`` ask for; see `fedddp.cli.options.show`."""
    config = resolve(build(*asked(args).layers), Place(world_size=4))
    dataset, partition = load_data(config)
    for key, write in {"save": write_partition, "images": partial(_draw_images, config, dataset)}.items():
        if path := getattr(args, key):
            _written(key, path, partial(write, partition=partition))
            print(f"written to {path}")
    print_table = _print_classes if dataset.classes is not None else _print_values
    print_table(Table(title=f"{config.data.name}: {config.data.partition}"), dataset, partition)
    y, num_classes = dataset.classes, dataset.num_classes
    _written("out", args.out, partial(figures.save, figures.partition(partition.excerpt(y, num_classes))))
    print(f"drawn in {args.out}")


def _print_classes(table: Table, dataset: Dataset, partition: Partition) -> None:
    """How many examples of each class the clients own."""
    y, num_classes, num_clients = dataset.train.y.numpy(), dataset.num_classes, partition.num_clients
    labels = _labels_each(partition, y, num_classes)
    each = num_classes <= COLUMNS_PRINTED
    for column in ("client", *(map(str, range(num_classes)) if each else ["labels"]), "examples"):
        table.add_column(column, justify="right")
    for client, row in enumerate(partition.counts(y, num_classes, np.arange(min(num_clients, ROWS_PRINTED)))):
        owned = (str(n) if n else "." for n in row) if each else [str(labels[client])]
        table.add_row(str(client), *owned, str(row.sum()))
    _print(table, partition, f", {labels.min()} to {labels.max()} labels each (mean {labels.mean():.1f})")


def _print_values(table: Table, dataset: Dataset, partition: Partition) -> None:
    """What the clients' targets are like, where they are no classes."""
    values = VALUES[dataset.targets]
    for column in ("client", *list(values(dataset.train.y))[:COLUMNS_PRINTED], "examples"):
        table.add_column(column, justify="right")
    for client in range(min(partition.num_clients, ROWS_PRINTED)):
        rows = torch.from_numpy(partition.indices(client)).long()
        owned = list(values(dataset.train.y[rows]).values())[:COLUMNS_PRINTED]
        table.add_row(str(client), *owned, str(len(rows)))
    _print(table, partition, "; of all: " + ", ".join(f"{k} {v}" for k, v in values(dataset.train.y).items()))


def _print(table: Table, partition: Partition, more: str) -> None:
    sizes = partition.sizes
    if partition.num_clients > ROWS_PRINTED:
        table.add_row("...")
    console().print(table)
    span = f"{sizes.min()} to {sizes.max()} examples (median {int(np.median(sizes))})"
    print(f"{partition.num_clients} clients: {span}{more}")


def _written(key: str, path: Path, write: Callable[[Path], None]) -> None:
    """Write to ``path``, which is what ``--key`` names."""
    try:
        write(path)
    except ValueError as error:
        raise UsageError(f"--{key}={error}") from None
    except OSError as error:
        raise UsageError(f"--{key}={path}: cannot be written ({error.strerror})") from None


def _draw_images(config: Config, dataset: Dataset, path: Path, partition: Partition) -> None:
    """The first examples of the first clients, as local training sees them."""
    normalize, skew, seed = dataset.normalizer(torch.float32), config.data.skew, config.run.seed
    data = ClientData(dataset.train, partition, normalize, placement="shared", skew=skew, seed=seed)
    shown = {}
    for client in range(min(IMAGES_OF, partition.num_clients)):
        first = torch.arange(min(IMAGES_EACH, int(partition.sizes[client])))
        shown[client] = data.gather([client], first.view(1, 1, -1))[0].flatten(0, 2)
    try:
        drawn = figures.images(shown)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be drawn: {error}; leave --images out") from None
    figures.save(drawn, path, dpi=72)


def _labels_each(partition: Partition, y: Ints, num_classes: int) -> Ints:
    """Different labels a client, [N]; some clients at a time."""
    at_once = max(1, COUNTS_AT_ONCE // num_classes)
    some = np.array_split(np.arange(partition.num_clients), -(-partition.num_clients // at_once))
    return np.concatenate([(partition.counts(y, num_classes, ids) > 0).sum(axis=1) for ids in some])
