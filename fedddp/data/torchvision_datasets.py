"""Reaching torchvision's dataset classes, also beside a torch its compiled operators were not built for."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import torch

_declared: list[torch.library.Library] = []


def torchvision_class(name: str) -> Any:
    """``torchvision.datasets.<name>``.

    A CUDA build of torchvision beside a CPU build of torch cannot load its compiled operators, and its import then
    fails where it registers shapes for them. The datasets are pure Python: declaring the operators' names is enough.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            datasets = importlib.import_module("torchvision.datasets")
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _declare_operators()
            datasets = importlib.import_module("torchvision.datasets")
    return getattr(datasets, name)


def _declare_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in sorted(set(re.findall(r'register_fake\("torchvision::(\w+)"\)', source))):
        library.define(f"{operator}(Tensor x) -> Tensor")
    _declared.append(library)  # a declaration lives as long as its library object
