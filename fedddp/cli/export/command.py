"""``fedddp export``: choose the model of a run, write it in a format, and a model card beside it."""

import logging
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import UsageError
from ...registry.choice import user_path
from ...trained import Trained, found
from .card import card
from .formats import FORMATS

log = logging.getLogger("fedddp")

CARD = "README.md"


def run(args: Namespace) -> None:
    """Export what ``args`` ask for; see `fedddp.cli.options.export`."""
    check_run(args.run)
    trained = chosen(args.run, args.round, args.client)
    format = FORMATS[args.to]
    of_client = "" if args.client is None else f"-client-{args.client}"
    out = user_path(args.out or args.run / "export" / f"{args.to}-round-{trained.round:06d}{of_client}")
    if not args.force and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"--out={out}: has files already; --force replaces those of the same name, or choose another folder"
        )
    with TemporaryDirectory() as made:  # a format that cannot be written leaves nothing
        folder = Path(made)
        checked = format.write(trained, folder / format.file)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        (folder / CARD).write_text(card(trained, args.to, args.client, files, folder, checked), encoding="utf-8")
        try:
            shutil.copytree(folder, out, copy_function=_replaced, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or "some files"
            raise UsageError(f"--out={out}: cannot be written ({reason})") from None
    print(f"round {trained.round}{of_client.replace('-', ' ')}: {out / format.file}, described in {out / CARD}")


def _replaced(source: str, target: str) -> None:
    """Copy a file; one that is there is replaced as a whole, since a program may have it mapped."""
    hidden = Path(target).with_name(f".{Path(target).name}")
    shutil.copyfile(source, hidden)
    hidden.replace(target)


def check_run(folder: Path) -> None:
    """Raise UsageError if ``folder`` is not a run folder."""
    if not (folder / "config.toml").is_file():
        raise UsageError(f"{folder}: is not a run folder (it has no config.toml); give one that fedddp train made")


def chosen(run: Path, round: int | None, client: int | None, layer: Mapping[str, Any] | None = None) -> Trained:
    """Load the model of a round, a client's own, or by default the best; the last where no round was evaluated."""
    if round is not None or client is not None:
        return found(run, round=round, client=client, layer=layer)
    try:
        return found(run, best=True, layer=layer)
    except UsageError as error:
        if error.code != "no-evaluated-model":
            raise
    log.warning("%s: no round was evaluated; the last model is taken", run)
    return found(run, layer=layer)
