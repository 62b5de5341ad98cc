"""Print and draw who owns what: the partition that a configuration describes, without training.

    python -m fedddp.show [FILE.toml ...] [--section.key=value ...] [--out=partition.png]

Takes the keys of `fedddp.train`; the population is ``data.partition.num_clients`` (default: 4, as in the quickstart).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .comm import Place
from .config import Config, UsageError, build, help_text, parse
from .data import Partition
from .data.partition import Ints
from .preparation import load_data, resolve
from .telemetry import figures, log_to_stderr

ROWS_PRINTED = 40
CLIENTS_AT_ONCE = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage or configuration)."""
    log_to_stderr(0, 1)
    words = sys.argv[1:] if argv is None else list(argv)
    out = next((Path(w.removeprefix("--out=")) for w in words if w.startswith("--out=")), Path("partition.png"))
    try:
        request = parse([w for w in words if not w.startswith("--out=")])
        if "--help" in request.flags:
            print(__doc__, help_text(), sep="\n")
            return 0
        _show(resolve(build(*request.layers), Place(world_size=4)), out)
    except UsageError as error:
        print(f"fedddp: {error}", file=sys.stderr)
        return 2
    return 0


def _show(config: Config, out: Path) -> None:
    dataset, partition = load_data(config)
    y, num_classes, num_clients = dataset.train.y.numpy(), dataset.num_classes, partition.num_clients
    table = Table(title=f"{config.data.name}: {config.data.partition}")
    for column in ("client", *map(str, range(num_classes)), "examples"):
        table.add_column(column, justify="right")
    for client, row in enumerate(partition.counts(y, num_classes, np.arange(min(num_clients, ROWS_PRINTED)))):
        table.add_row(str(client), *(str(n) if n else "." for n in row), str(row.sum()))
    if num_clients > ROWS_PRINTED:
        table.add_row("...")
    sizes, labels = partition.sizes, _labels_each(partition, y, num_classes)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(
        f"{num_clients} clients: {sizes.min()} to {sizes.max()} examples (median {int(np.median(sizes))}), "
        f"{labels.min()} to {labels.max()} labels each (mean {labels.mean():.1f})"
    )
    try:
        figures.partition(partition.excerpt(y, num_classes)).savefig(out, dpi=120)
    except OSError as error:
        raise UsageError(f"--out={out}: cannot be written ({error.strerror})") from None
    print(f"drawn in {out}")


def _labels_each(partition: Partition, y: Ints, num_classes: int) -> Ints:
    """Different labels a client, [N]; some clients at a time, or a million would be gigabytes."""
    some = np.array_split(np.arange(partition.num_clients), -(-partition.num_clients // CLIENTS_AT_ONCE))
    return np.concatenate([(partition.counts(y, num_classes, ids) > 0).sum(axis=1) for ids in some])


if __name__ == "__main__":
    sys.exit(main())
