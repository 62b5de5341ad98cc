"""Libraries that only some choices need: imported when they are named."""

import importlib
from typing import Any

from ..errors import UsageError, reason
from .torchvision_operators import declare_if_missing


def imported(module: str, extra: str, key: str) -> Any:
    """Import ``module`` of a library. Raises UsageError, naming ``key``, with the command that installs it."""
    declare_if_missing()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{key}: needs {module} ({reason(error)}); pip install 'fedddp[{extra}]'") from None
