"""HetLoRA: clients train adapters of different ranks."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, ServerState, Update
from .adapters import Adapters
from .base import LocalTraining
from .fedavg import FedAvg

SCALE = 1024.0
"""Divides all weights alike, which changes no mean: a weight above a client's number of examples is not accepted."""


@dataclass(frozen=True)
class HetLoRA(FedAvg):
    """Cho, Liu, Xu, Fahrezi, Joshi 2024, "Heterogeneous LoRA for federated fine-tuning of on-device foundation models"
    (EMNLP, arXiv 2401.06432).

        client k trains the first r_k rows of A and columns of B;    w <- sum_k p_k w_k, the others of w_k being 0,
        p_k = ||B_k A_k|| / sum_j ||B_j A_j||    (Frobenius over all layers; weighting=auto)

    Client k has rank ``ranks[k mod len]``. Not built: the paper's pruning, by which a client gives up rank that its own
    data do not need.
    Symbols: r_k = ranks, w_k = local.train(server.w with zeros beyond r_k).w.
    """

    ranks: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        Field(min_length=1, description="ranks of the clients' adapters, in turn; at most model.lora.rank"),
    ] = (2, 4, 8)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        most = min(a.shape[0] for a, _ in Adapters.of(spec).factors(torch.empty(spec.dim, device="meta")))
        if max(self.ranks) > most:
            raise ValueError(f"algorithm.ranks={list(self.ranks)}: the model's adapters have rank {most}")
        return super().vectors(spec)

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        adapters, p = Adapters.of(server.spec), server.num_trainable
        own = torch.ones(len(local.ids), server.spec.dim, dtype=server.w.dtype, device=server.w.device)
        for a, b in adapters.factors(own):
            for row, k in enumerate(local.ids):
                rank = self.ranks[k % len(self.ranks)]
                a[row, rank:], b[row, :, rank:] = 0, 0
        result = local.train(server.w * own, lambda g, _: g * own[: len(g), :p])
        rows, weight = result.w, self.weight(local)
        if self.weighting == "auto":
            weight = adapters.norms(rows) / SCALE
        return Update({"delta": rows - server.w}, weight), client, result
