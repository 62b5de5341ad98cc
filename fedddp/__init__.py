"""fedddp: federated learning as a torch.distributed program.

In a script or a notebook, ``fedddp.run(rounds=3, model="mlp")`` trains; see `fedddp.api`. The names below are imported
when they are first used: ``import fedddp`` by itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result as Result
    from .api import assemble as assemble
    from .api import run as run
    from .config import UsageError as UsageError
    from .data import Dataset as Dataset
    from .data import Examples as Examples
    from .data import Partition as Partition
    from .federation import federate as federate
    from .tasks import Task as Task
    from .trained import load as load
    from .trained import normalizer as normalizer
    from .trained import predictor as predictor

__version__ = "0.1.0"

_HOME = {
    "Dataset": "data",
    "Examples": "data",
    "Partition": "data",
    "Result": "api",
    "Task": "tasks",
    "UsageError": "config",
    "assemble": "api",
    "federate": "federation",
    "load": "trained",
    "normalizer": "trained",
    "predictor": "trained",
    "run": "api",
}

__all__ = [
    "Dataset",
    "Examples",
    "Partition",
    "Result",
    "Task",
    "UsageError",
    "__version__",
    "assemble",
    "federate",
    "load",
    "normalizer",
    "predictor",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
