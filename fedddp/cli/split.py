"""Divide a dataset into one folder per client and a public one, for ranks that are to hold nothing else.

    fedddp split --out=parts [FILE.toml ...] [--section.key=value ...]
    fedddp split --out=parts --data.name=mnist --data.partition.num_clients=4

Takes the keys of `fedddp.train`; of them ``data.*`` and ``run.seed`` count. Then copy parts/public and one client's
folder to the machine of its owner, and train there with --data.name=parts --data.root=parts. What lies in the folders,
and what the public one tells: `fedddp.data.parts`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import Config, UsageError, build, help_text, parse, to_dict
from ..data.parts import PUBLIC, train_file, write
from ..registry.choice import user_path
from ..setup.load import load_data
from ..telemetry import lasting_output


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage or configuration)."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        words, out = _without_out(words)
        request = parse(words)
        if "--help" in request.flags:
            print(__doc__, help_text(), sep="\n")
            return 0
        if not out:
            raise UsageError("--out: is missing; name a new folder, as --out=parts")
        _split(build(*request.layers), user_path(out))
    except UsageError as error:
        print(f"fedddp: {error}", file=sys.stderr)
        return 2
    return 0


def _without_out(words: list[str]) -> tuple[list[str], str]:
    """The words without ``--out=FOLDER`` or ``--out FOLDER``, and the folder."""
    left, out = [], ""
    rest = iter(words)
    for word in rest:
        if word == "--out":
            out = next(rest, "")
        elif word.startswith("--out="):
            out = word.removeprefix("--out=")
        else:
            left.append(word)
    return left, out


def _split(config: Config, out: Path) -> None:
    data = config.data
    if data.name == "parts":
        raise UsageError(f"data.name='parts': is divided already; name the dataset to divide (data.root={data.root!r})")
    if not data.partition.num_clients:
        raise UsageError("data.partition.num_clients=0: say how many clients there are, each gets a folder")
    dataset, partition = load_data(config)
    table = to_dict(config)["data"]["partition"]
    seed = config.run.seed if data.partition.seed is None else data.partition.seed
    try:
        public = write(out, dataset, partition, data=data.name, table=table, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--out={out}: cannot be written ({error.strerror})") from None
    first, last = (Path(train_file(k)).parent for k in (0, public.num_clients - 1))
    print(
        f"{out}: {first} to {last} of {min(public.sizes)} to {max(public.sizes)} examples of {data.name}, and {PUBLIC} "
        f"with {len(dataset.test)} test examples\n"
        f"on each machine: {PUBLIC}, its own client's folder, and --data.name=parts --data.root={out}"
    )


if __name__ == "__main__":
    sys.exit(main())
