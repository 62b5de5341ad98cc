"""Each reader fuzzed for a few seconds, and what counts as a failure; `python -m tests.fuzz` goes on for longer."""

import importlib.util
import itertools
import os
import signal
import time

import numpy as np
import pytest

from fedddp.errors import UsageError
from tests.fuzz.__main__ import fuzz
from tests.fuzz.isolate import outcomes
from tests.fuzz.readers import READERS

SECONDS = float(os.environ.get("FEDDDP_FUZZ_SECONDS", 120)) / len(READERS)
MOST = 1000
"""Attempts on a reader, however fast the machine is; those after them are for `python -m tests.fuzz`."""
NEEDS = {"images": "PIL", "texts": "tokenizers", "table": "pyarrow", "keys": "opacus"}


@pytest.mark.slow
@pytest.mark.timeout(600 + 4 * SECONDS)
@pytest.mark.parametrize("reader", READERS)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(reader):
    if reader in NEEDS and importlib.util.find_spec(NEEDS[reader]) is None:
        pytest.skip(f"needs {NEEDS[reader]}")
    found = [*itertools.islice(fuzz(reader, SECONDS), MOST)]
    failures = [f"python -m tests.fuzz {reader} --only={o.number}: {o.kind}\n{o.text}" for o in found if o.fails]
    assert not failures, "\n".join(failures[:3])
    assert found


def unlike(number):
    """Attempts that come to every outcome there is."""
    if number == 1:
        raise UsageError("key=1: is one; take two")
    if number == 2:
        raise IndexError("list index out of range")
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        while True:
            pass
    if number == 5:
        np.ones(4 * 10**9 // 8)
    if number == 6:
        try:
            np.ones(4 * 10**9 // 8)
        except MemoryError as error:
            raise UsageError("key=1: is too large") from error
    if number == 7:
        raise UsageError("x" * 3000)
    if number == 8:
        raise SystemExit(3)
    if number == 9:
        time.sleep(10**6)


def test_failures_are_told_from_what_is_fine_and_what_is_refused():
    found = [*itertools.islice(outcomes(unlike, limit=0.3), 11)]
    assert [outcome.number for outcome in found] == [*range(11)]
    kinds = [
        "fine",
        "refused",
        "traceback",
        "died",
        "hang",
        "memory",
        "memory",
        "not a short line",
        "traceback",
        "hang",
    ]
    assert [outcome.kind for outcome in found] == [*kinds, "fine"]
    assert [outcome.fails for outcome in found] == [False, False, *[True] * 8, False]
    assert found[3].text == "signal 11"
