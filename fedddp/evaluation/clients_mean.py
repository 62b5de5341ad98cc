"""The mean of the clients' last models, which some papers evaluate in place of the server's (FedDyn)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms import LAST_MODEL
from ..clients import ClientStore
from ..comm import Comm, Purpose
from ..sampling import blocks

PARAMETERS_AT_ONCE = 2**24  # of models side by side: 64 MB


@dataclass(frozen=True)
class ClientsMean:
    """sum_k p_k w_k over all clients, w_k what client k trained last (w_0 before), p_k of ``weights`` [N]."""

    weights: Tensor
    comm: Comm

    def models(self, store: ClientStore) -> Mapping[str, Tensor]:
        """The mean after the round that left ``store``, on every rank, by one all_reduce of a model."""
        self.comm.enter("mean of the clients' models")
        first = store.initial()[LAST_MODEL][0]
        share = (self.weights / self.weights.sum()).double()
        total = torch.zeros(len(first) + 1, dtype=torch.float64, device=first.device)  # the last entry: summed shares
        for ids in blocks(tuple(sorted(store.touched)), max(1, PARAMETERS_AT_ONCE // len(first))):
            mine = share[list(ids)].to(first.device)
            total[:-1] += mine @ store.latest(ids)[LAST_MODEL].double()
            total[-1] += mine.sum()
        total = self.comm.all_reduce(total, Purpose.CLIENTS_MEAN)
        return {"clients_mean": (total[:-1] + (1 - total[-1]) * first.double()).to(first)}


def none(store: ClientStore) -> Mapping[str, Tensor]:
    """No model besides the server's."""
    return {}
