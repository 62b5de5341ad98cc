"""Algorithms of a user's whose vectors have other shapes than they declare, named by import path in tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fedddp.algorithms import FedAvg
from fedddp.types import Update


@dataclass(frozen=True)
class Misshapen(FedAvg):
    """FedAvg with a state of three numbers per client; ``what`` has another shape or name."""

    what: Literal["nothing", "initial", "state", "state name", "state missing", "upload", "upload name", "weight"] = (
        "nothing"
    )

    def init_client(self, server):
        return {"c": torch.zeros(3) if self.what == "initial" else torch.zeros(1, 3)}

    def client_update(self, server, client, local):
        update, _, result = super().client_update(server, client, local)
        state, (delta, weight) = {"c": client["c"] + 1}, (update.vectors["delta"], update.weight)
        if self.what == "state":
            state = {"c": client["c"][:, 1:]}
        if self.what == "state name":
            state = {"d": state["c"]}
        if self.what == "state missing":
            state = {}
        if self.what == "upload":
            update = replace(update, vectors={"delta": delta[:, 1:]})
        if self.what == "upload name":
            update = Update({"step": delta}, weight)
        if self.what == "weight":
            update = replace(update, weight=weight[:1] if len(weight) > 1 else weight.repeat(2))
        return update, state, result
