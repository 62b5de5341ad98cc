"""Fuzz readers by hand; see `tests.fuzz`."""

import argparse
import contextlib
import io
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.isolate import Outcome, outcomes
from tests.fuzz.readers import READERS


def fuzz(reader: str, seconds: float, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """Yield the outcomes of attempts on a reader for some seconds; an attempt follows from its number and ``seed``."""
    logging.getLogger("fedddp").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fedddp-fuzz-") as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            attempt = READERS[reader](Path(folder) / "work")
        ends = time.monotonic() + seconds

        def made(number: int) -> None:
            os.chdir(folder)  # of the process that makes the attempts: a key may name a relative path
            attempt(random.Random(f"{reader} {seed} {number}"))

        found = outcomes(made, first)
        with contextlib.closing(found):  # its process writes to the folder
            for outcome in found:
                yield outcome
                if time.monotonic() > ends:
                    return


def main() -> int:
    """Fuzz one reader, or each of them, and print the failures."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", default=[*READERS], help=", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one attempt, to see it again")
    args = parser.parse_args()
    failed = 0
    for reader in args.readers:
        kinds: Counter[str] = Counter()
        seen: set[str] = set()
        for outcome in fuzz(reader, 0 if args.only is not None else args.seconds, args.seed, args.only or 0):
            kinds[outcome.kind] += 1
            lines = outcome.text.strip().splitlines() or [""]
            last = lines[-1] + (lines[-2] if outcome.kind == "traceback" and len(lines) > 2 else "")
            if args.only is not None or (outcome.fails and (outcome.kind, last) not in seen):
                print(
                    f"{reader} --seed={args.seed} --only={outcome.number}: {outcome.kind}\n{outcome.text}", flush=True
                )
            seen.add((outcome.kind, last))
            failed += outcome.fails
        print(f"{reader}: {kinds.total()} inputs in {args.seconds:g} s: {dict(kinds)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
