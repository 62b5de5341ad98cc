"""MOON: a client's features are drawn to the global model's and away from those of its own last model."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Contrast, ServerState, Update
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class Moon(FedAvg):
    """Li, He, Song 2021, "Model-contrastive federated learning", Algorithm 1.

    loss = cross-entropy + mu l_con,   l_con = -log( e^{cos(z, z_glob) / tau} / (e^{cos(z, z_glob) / tau} +
    e^{cos(z, z_prev) / tau}) ),   z, z_glob, z_prev: an example's features by w, by w_t and by the client's last w_k

    Symbols: mu = self.mu, tau = self.temperature, w_t = server.w, the last w_k = client["previous"] (w_0 before the
    first), z = what goes into the last linear layer. The paper has a projection head in front of that layer (two
    linear layers, the second to 256 features), which is part of the model: the models of fedddp have none, so that z
    are the features themselves, as in the authors' variant "noheader". mu = 0 is FedAvg. Clients train sequentially,
    whatever ``client.execution`` says.
    """

    mu: Annotated[float, Field(ge=0, le=1e9, description="weight of the contrastive loss")] = 1.0
    temperature: Annotated[float, Field(gt=0, le=1e9, description="tau, of the cosines in it")] = 0.5

    @property
    def traits(self) -> Traits:
        return replace(super().traits, contrasts=self.mu > 0)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = super().init_server(w, spec)
        return replace(server, extra={**server.extra, "w_0": w.clone()})

    def init_client(self, server: ServerState) -> ClientState:
        return {"previous": server.extra["w_0"].unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        previous = client["previous"]
        models = torch.stack([server.w.expand_as(previous), previous])  # [2, K, D]
        result = local.train(server.w, contrast=Contrast(models, self._contrastive) if self.mu else None)
        return Update({"delta": result.delta}, self.weight(local)), {"previous": result.w}, result

    def _contrastive(self, z: Tensor, others: Tensor) -> Tensor:
        """mu l_con of each example, [B]; ``z [B, d]``, ``others [2, B, d]``."""
        scores = F.cosine_similarity(z, others, dim=-1) / self.temperature  # [2, B]
        return -self.mu * scores.log_softmax(dim=0)[0]
