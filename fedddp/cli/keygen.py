"""Keys for the parties of secure aggregation, and the roster of their public halves. No file is ever replaced."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..secure.identity import Identity, IdentityError, Roster


def run(args: Namespace) -> None:
    """Write what ``args`` ask for (see `fedddp.cli.options.keygen`), and print the paths."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.merge:
            written = _merge(args.merge, args.out)
        elif args.rank is not None:
            written = _make([args.rank], args.out, roster=False)
        else:
            written = _make(range(args.parties), args.out, roster=True)
    except OSError as error:
        raise IdentityError(str(error)) from None
    print("\n".join(str(path) for path in written))


def _make(ranks: Sequence[int], out: Path, *, roster: bool) -> list[Path]:
    paths = [out / f"rank-{rank}.key" for rank in ranks]
    public = [out / "roster.toml"] if roster else [out / f"rank-{rank}.pub" for rank in ranks]
    for path in (*paths, *public):
        if path.exists():
            raise IdentityError(f"{path}: exists, and is not replaced; choose another --out or remove it")
    identities = {rank: Identity.new() for rank in ranks}
    for path, identity in zip(paths, identities.values(), strict=True):
        identity.save(path)
    keys = {rank: identity.public for rank, identity in identities.items()}
    if roster:
        _write(public[0], Roster(keys).text())
    else:
        for path, key in zip(public, keys.values(), strict=True):
            _write(path, key.hex() + "\n")
    return [*paths, *public]


def _merge(files: Sequence[Path], out: Path) -> list[Path]:
    keys: dict[int, bytes] = {}
    for file in files:
        named = re.fullmatch(r"rank-(\d+)\.pub", file.name)
        if named is None:
            raise IdentityError(f"{file}: not named rank-K.pub, so its owner is unknown; rename it")
        text = file.read_text("ascii", errors="replace").strip()
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise IdentityError(f"{file}: not a public key of 64 hexadecimal digits; ask its owner again")
        if int(named[1]) in keys:
            raise IdentityError(f"{file}: rank {named[1]} is given twice; leave one of the files out")
        keys[int(named[1])] = bytes.fromhex(text)
    if set(keys) != set(range(len(keys))):
        raise IdentityError(f"{out}: ranks are 0 to {max(keys)} without a gap; the other parties' files are missing")
    if len(set(keys.values())) < len(keys):
        raise IdentityError(f"{out}: two ranks have the same key; every party needs one of its own")
    path = out / "roster.toml"
    _write(path, Roster(keys).text())
    return [path]


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise IdentityError(f"{path}: exists, and is not replaced; choose another --out or remove it") from None
