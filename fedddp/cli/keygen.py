"""Keys for the parties of secure aggregation: ``fedddp keygen``.

On one machine, to try it: --parties 4 --out keys/ writes rank-0.key to rank-3.key and roster.toml. In a deployment no
key leaves its owner: each party runs --rank K --out keys/ and sends rank-K.pub to the others, who compare it over a
second channel; --merge *.pub --out keys/ makes the roster, the same file on every party. No file is ever replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..registry.choice import user_path
from ..secure.identity import Identity, IdentityError, Roster


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 1 a file that cannot be read or written, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="fedddp keygen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parties", type=int, metavar="N", help="keys of all N parties and the roster, on one machine")
    what.add_argument("--rank", type=int, metavar="K", help="the key of party K alone, and its public half")
    what.add_argument(
        "--merge", nargs="+", type=user_path, metavar="FILE", help="the roster, from everybody's rank-K.pub"
    )
    parser.add_argument("--out", type=user_path, required=True, metavar="FOLDER", help="where the files are written")
    chosen = parser.parse_args(argv)
    parties: int | None = chosen.parties
    rank: int | None = chosen.rank
    if parties is not None and parties < 3:
        parser.error("--parties: secure aggregation needs at least 3; of two, each learns the other's update")
    if rank is not None and rank < 0:
        parser.error("--rank: ranks count from 0")
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        if chosen.merge:
            written = _merge(chosen.merge, chosen.out)
        elif rank is not None:
            written = _make([chosen.rank], chosen.out, roster=False)
        else:
            written = _make(range(parties or 0), chosen.out, roster=True)
    except (OSError, IdentityError) as error:
        print(f"keygen: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in written))
    return 0


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
            raise IdentityError(f"{file}: not named rank-K.pub, so whose key it is cannot be told; rename it")
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


if __name__ == "__main__":
    sys.exit(main())
