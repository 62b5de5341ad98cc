"""Import torchvision and its dataset classes beside a torch that its compiled operators were not built for.

A CUDA build of torchvision beside a CPU build of torch cannot load its operators, and its import then fails where it
registers shapes for them ("operator torchvision::nms does not exist"). Models, datasets and most transforms need none:
declaring the operators' names is enough.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch

REGISTERING = "torchvision._meta_registrations"

_declared: list[torch.library.Library] = []


class _Declaring(MetaPathFinder):
    """Finds nothing, but declares the operators just before the module is imported that registers shapes for them."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname == REGISTERING and path and not hasattr(torch.ops.torchvision, "nms"):
            source = (Path(next(iter(path))) / "_meta_registrations.py").read_text(encoding="utf-8")
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in sorted(set(re.findall(r'register_fake\("torchvision::(\w+)"\)', source))):
                library.define(f"{operator}(Tensor x) -> Tensor")
            _declared.append(library)  # a declaration lives as long as its library object


def declare_if_missing() -> None:
    """From now on ``import torchvision`` succeeds without its compiled operators, wherever it is imported."""
    if not any(isinstance(finder, _Declaring) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Declaring())


def torchvision_class(name: str) -> Any:
    """``torchvision.datasets.<name>``."""
    declare_if_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("torchvision.datasets"), name)
