"""What several unit tests share."""

import logging
from pathlib import Path

import pytest
import torch

from fedddp.data import DATASETS


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and one thread keeps float sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits():
    """The embedded digits; they need no folder."""
    return DATASETS["mnist-mini"](Path("not-needed"), False)


@pytest.fixture
def logged():
    """The lines that fedddp logs, whatever a program in the same process did to the logger before."""
    lines, logger = [], logging.getLogger("fedddp")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
