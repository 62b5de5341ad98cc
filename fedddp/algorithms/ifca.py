"""IFCA: several models, each client with the one that suits it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..rng import generator
from ..types import ClientState, ClientUpdate, Cohort, Delivery, Mean, ServerState, Update
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class IFCA(FedAvg):
    """Ghosh, Chung, Yin, Ramchandran 2020, "An efficient framework for clustered federated learning", Algorithm 1,
    option II (model averaging).

        j_k = argmin_j F_k(theta_j),   theta_k = E local epochs on client k from theta_{j_k}
        theta_j <- theta_j + mean_{k: j_k = j} (theta_k - theta_j)

    the plain mean, as in the paper; ``weighting=examples`` weighs clients by n_k. A cluster that nobody picked stays as
    it is.
    Symbols: theta_0 = server.w (the model that "global" figures are of), theta_j = server.extra["theta.j"],
    j_k = client["cluster"]: the last pick, cluster 0 for a client that never took part. Uploaded are, for each j,
    "delta.j" = theta_k - theta_j and "share.j" = 1, both 0 for clusters that were not picked: the collective has M D
    entries, so that one sum serves all clusters.

    theta_1, ... begin as theta_0 with the values of each tensor shuffled: for layers whose values are drawn alike,
    another draw. (A tensor of equal values stays the same, and a model of such tensors has only one cluster.)
    """

    weighting: Annotated[
        Literal["uniform", "examples"], Field(description="a client's weight in its cluster's mean: 1, or its examples")
    ] = "uniform"
    clusters: Annotated[int, Field(ge=1, le=1000, description="M, number of models")] = 2

    @property
    def traits(self) -> Traits:
        """What arrives late may belong to a cluster that the client has left."""
        kept: frozenset[Delivery] = frozenset({"whole", "lossy"})
        return replace(super().traits, clusters=self.clusters, reads_losses=True, deliveries=kept)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {f"{name}.{j}": d for j in range(self.clusters) for name, d in (("delta", spec.dim), ("share", 1))}

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        models = [w, *(_shuffled(w, spec, j) for j in range(1, self.clusters))]
        return self._together([super(IFCA, self).init_server(model, spec) for model in models])

    def init_client(self, server: ServerState) -> ClientState:
        return {"cluster": server.w.new_zeros(1, 1)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        models = torch.stack([one.w for one in self._apart(server)])  # [M, D]
        pick = torch.stack([local.loss(w) for w in models]).argmin(dim=0).to(models.device)  # [K]
        update, _, result = super().client_update(replace(server, w=models[pick]), client, local)
        vectors = {}
        for j in range(self.clusters):
            share = (pick == j).to(result.delta).unsqueeze(1)  # [K, 1]
            vectors |= {f"delta.{j}": share * result.delta, f"share.{j}": share}
        return Update(vectors, update.weight), {"cluster": pick.to(server.w).unsqueeze(1)}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        after = []
        for j, one in enumerate(self._apart(server)):
            share = mean.vectors[f"share.{j}"]
            delta = {"delta": mean.vectors[f"delta.{j}"] / share}
            picked = float(share) > 0
            after.append(
                super().server_update(one, replace(mean, vectors=delta), cohort) if picked else one.unchanged()
            )
        return self._together(after)

    def personal_params(self, server: ServerState, client: ClientState) -> Tensor:
        return torch.stack([one.w for one in self._apart(server)])[client["cluster"].long().squeeze(1)]

    def _together(self, states: Sequence[ServerState]) -> ServerState:
        first = states[0]
        extra = {f"theta.{j}": one.w for j, one in enumerate(states) if j}
        extra |= {f"{name}.{j}": vector for j, one in enumerate(states) for name, vector in one.extra.items()}
        return replace(first, extra=extra)

    def _apart(self, server: ServerState) -> list[ServerState]:
        """The state of each cluster as federated averaging knows it."""
        states = []
        for j in range(self.clusters):
            mine = {name.rpartition(".")[0]: v for name, v in server.extra.items() if name.endswith(f".{j}")}
            w = mine.pop("theta", server.w)
            states.append(replace(server, w=w, extra=mine))
        return states


def _shuffled(w: Tensor, spec: FlatSpec, j: int) -> Tensor:
    """Return the first model of cluster ``j``: w_0 with the values of each tensor in another order."""
    stream = generator(0, "cluster", j)  # w_0 depends on the seed already
    return torch.cat([part[torch.randperm(len(part), generator=stream).to(w.device)] for part in w.split(spec.sizes)])
