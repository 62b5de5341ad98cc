"""The model: measurements [B, 4] to a score [B, 1], above 0 for ill."""

from torch import nn


class Risk(nn.Sequential):
    """Logistic regression, or with ``hidden`` units a small network."""

    def __init__(self, hidden: int = 0):
        super().__init__(*([nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(4, 1)]))
