"""The matrix of a mechanism of correlated noise, and the noise of a run's releases."""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedddp.privacy import Mechanism


def noise_matrix(mechanism: Mechanism, releases: int) -> np.ndarray:
    """B [releases, draws]: the noise of each release by the standard normal vectors that were drawn, in their order."""
    number = 0

    def draw() -> torch.Tensor:
        nonlocal number
        number += 1
        return torch.nn.functional.one_hot(torch.tensor(number - 1), 4 * releases).double()

    rows = mechanism.noise(draw)
    return torch.stack([next(rows) for _ in range(releases)]).numpy()[:, :number]


def steps_of(run: Path) -> torch.Tensor:
    """What each round added to the model, [T - 1, D] from the second on, of a run with a checkpoint of every round."""
    folders = sorted((run / "checkpoints").glob("round-*"))
    assert [int(re.sub(r"\D", "", folder.name)) for folder in folders] == list(range(1, len(folders) + 1))
    return torch.stack([load_file(folder / "server.safetensors")["w"].double() for folder in folders]).diff(dim=0)
