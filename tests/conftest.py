"""What all tests share: ``run_ranks``, the embedded digits, and what programs that they start need to find modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ranks
from tests.helpers.support import all_digits
from tests.helpers.support import logged as logged

HERE = Path(__file__).parent
FOUND = [str(HERE.parent), str(HERE / "plugins")]  # as pythonpath in pyproject.toml has them for this process
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*FOUND, os.environ.get("PYTHONPATH", "")]))
torch.set_num_threads(1)
SLOW = ("configs", "distributed", "gpu", "launch")
"""Folders whose tests start programs or ranks, or train whole runs."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as slow what is in a folder of SLOW, and what runs on several ranks."""
    for item in items:
        if item.path.relative_to(HERE).parts[0] in SLOW or "run_ranks" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """``run_ranks(body, world_size, *args)``: see `ranks.run`."""
    return partial(ranks.run, tmp_path)


@pytest.fixture(scope="session")
def digits():
    """The embedded digits, for reading only."""
    return all_digits()
