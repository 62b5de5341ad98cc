"""What several unit tests share."""

from pathlib import Path

import pytest
from support import logged as logged

from fedddp.data import DATASETS


@pytest.fixture(scope="session")
def digits():
    """The embedded digits; they need no folder."""
    return DATASETS["mnist-mini"](Path("not-needed"), False)
