"""Write what `fedddp doctor` found into a file that can be given to others: it holds no keys and no secrets."""

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.durable import writing
from ...comm import Place
from ...config import Config, flatten, to_dict
from ...telemetry.environment import environment
from .finding import Finding

VARIABLES = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_|GROUP_|MASTER_|TORCH|GLOO_|NCCL_|OMP_|MKL_|CUDA_|SLURM_(JOB_ID|STEP|NTASKS|PROCID|NODE))"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
LOOKS_SECRET = re.compile(r"://[^/\s]*:[^/\s]*@|[A-Za-z0-9+/_-]{32,}|-----BEGIN")
HIDDEN = "(left out)"


def write(path: Path, found: Sequence[Finding], config: Config, place: Place, env: Mapping[str, str]) -> None:
    """Write a report as JSON. Raises WriteError if it cannot be written.

    Of the environment it has the variables by which ranks meet, of the configuration what differs from the defaults;
    a value is left out where it or its name looks like a secret.
    """
    defaults = flatten(to_dict(Config()))
    keys = {k: v for k, v in flatten(to_dict(config)).items() if defaults.get(k) != v}
    report = {
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": socket.gethostname(),
        "findings": [asdict(finding) for finding in found],
        "machine": environment(torch.device("cpu"), place.world_size, torch.get_num_threads()).splitlines(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "variables": {k: shown(k, v) for k, v in sorted(env.items()) if VARIABLES.match(k)},
        "configuration": {k: shown(k, v) for k, v in keys.items()},
    }
    with writing(str(path), "choose another file"):
        path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def shown(name: str, value: Any) -> Any:
    """Return the value as it may be shown: not if it or its name looks like a secret."""
    return HIDDEN if SECRET.search(name) or LOOKS_SECRET.search(str(value)) else value
