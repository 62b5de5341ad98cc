"""Algorithms that misbehave on purpose, named by import path in tests."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from fedddp.algorithms import FedAvg
from fedddp.comm import interrupt
from fedddp.types import Update


@dataclass(frozen=True)
class Faulty(FedAvg):
    """FedAvg whose client ``client`` fails in round ``round`` (0 = every round), in the way ``how`` names.

    ``once``: a file that is made at the first failure; later ones are left out while it exists.
    """

    how: str = "raise"
    client: int = 1
    round: int = 0
    once: str = ""

    def client_update(self, server, client, local):
        update, state, result = super().client_update(server, client, local)
        due = self.client in (*local.ids, -1) and self.round in (0, local.round + 1)
        if not due or (self.once and Path(self.once).exists()):
            return update, state, result
        if self.once:
            Path(self.once).touch()
        if self.how == "raise":
            raise RuntimeError("this client's disk is full")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(0)
        if self.how == "hang":
            threading.Event().wait()  # a signal does not end it
        while self.how == "work":  # until it is asked to stop
            interrupt.check()
        value = {"nan": float("nan"), "inf": float("inf"), "huge": 1e6}[self.how]
        return Update({"delta": torch.full_like(result.w, value)}, update.weight), state, result


@dataclass(frozen=True)
class Counting(FedAvg):
    """FedAvg whose clients remember in how many rounds they took part, and step by that much more."""

    def init_client(self, server):
        return {"rounds": torch.zeros(1, 1)}

    def client_update(self, server, client, local):
        update, _, result = super().client_update(server, client, local)
        times = client["rounds"] + 1
        return Update({"delta": update.vectors["delta"] * times}, update.weight), {"rounds": times}, result
