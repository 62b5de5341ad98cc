"""Classes of a user's that call sys.exit(), named by import path in tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import nn

from fedddp.algorithms import FedAvg


class InConstructor(nn.Module):
    def __init__(self):
        super().__init__()
        sys.exit()


class InForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x):
        sys.exit(0)


class InDataset:
    def __init__(self, root, train, download, **args):
        sys.exit("no disk")


@dataclass(frozen=True)
class OnServer(FedAvg):
    def server_update(self, server, mean, cohort):
        sys.exit(0)


@dataclass(frozen=True)
class OnClient(FedAvg):
    def client_update(self, server, client, local):
        sys.exit(0)
