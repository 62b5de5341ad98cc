"""Reaching torchvision's dataset classes, also beside a torch its compiled operators were not built for."""

import importlib
import warnings
from typing import Any

from ..registry.torchvision_operators import declare_if_missing


def torchvision_class(name: str) -> Any:
    """``torchvision.datasets.<name>``."""
    declare_if_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("torchvision.datasets"), name)
