"""Check a party's privacy account and print it: what each run released about its clients, and all of them together."""

import logging
from argparse import Namespace

from rich.table import Table

from ..checkpoints.account import FILE, AccountError, read
from ..errors import DONE, FAILED, UsageError, named
from ..privacy import compose_runs
from ..telemetry import console

log = logging.getLogger("fedddp")


def run(args: Namespace) -> int:
    """Print what ``args`` ask for (see `fedddp.cli.options.show_account`); 1 if the record was changed."""
    path = args.folder / FILE
    if not path.is_file():
        raise UsageError(f"{args.folder}: has no {FILE}; name the folder that privacy.account.dir stands for")
    try:
        history = read(args.folder, args.key)
    except (AccountError, OSError) as error:
        log.error("%s", error)
        return FAILED
    with named("--delta"):
        epsilons = [compose_runs([spent], args.delta) for spent in history.spent.values()]
        total = compose_runs([*history.spent.values()], args.delta)
    table = Table(title=f"{path}: privacy.level={history.level}")
    for column in ("run", "configuration", "releases", "sigma, q, steps", f"epsilon at delta {args.delta:g}"):
        table.add_column(column, justify="left" if column in ("run", "configuration") else "right")
    for ((name, digest), spent), epsilon in zip(history.spent.items(), epsilons, strict=True):
        each = "\n".join(f"{sigma:g}, {q:.4g}, {steps}" for sigma, q, steps in spent)
        releases = str(history.releases[name, digest])
        table.add_row(name, digest[:8], releases, each, f"{epsilon:.4g}")
    table.add_row("all", "", "", "", f"{total:.4g}")
    console().print(table)
    whole = "and none is missing" if args.key else "whether lines are missing at the end, only --key=FILE can tell"
    print(f"{history.lines} lines, unchanged and in order, signed by {history.key}; {whole}")
    return DONE
