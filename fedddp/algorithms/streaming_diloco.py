"""Streaming DiLoCo: one fragment of the model is summed a round, and applied at once or some rounds later."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Cohort, Delivery, Mean, ServerState, Update
from .base import LocalTraining, Traits
from .fedavg import FedAvg

VERSION = "streaming.version"
"""How often each fragment was moved, [P]: of the global model in ``ServerState.extra``, of its copy on a client."""
LOCAL = "streaming.w"
"""In a client's state: its own trainable parameters."""
PENDING, DUE = "streaming.pending", "streaming.due"
"""In ``ServerState.extra``: the mean of each fragment that waits, [P, L] flattened, and its round; -1 without one."""


@dataclass(frozen=True)
class StreamingDiLoCo(FedAvg):
    """Douillard et al. 2025, "Streaming DiLoCo with overlapping communication: towards a distributed free lunch",
    arXiv 2501.18512, Algorithm 2.

    The model is cut into P fragments. A round is H / P local steps from each client's own w_k; after those of round t,
    fragment p = t mod P is summed, so that each is summed once in H steps:

        Delta_p  = mean_k (w_k[p] - w[p])                                     in round t
        w[p]    <- the server optimizer's step along Delta_p                  at the end of round t + tau
        w_k[p]  <- alpha w_k[p] + (1 - alpha) w[p]                            before the next local step

    Symbols: w = server.w, w_k = client["streaming.w"], P = fragments, tau = delay, alpha = alpha, H / P =
    ``client.local_steps``. The bytes of H steps are those of DiLoCo, in P sums of one P-th each. P = 1 is DiLoCo.

    Differences from the paper. A fragment is L = ceil(num_trainable / P) neighbouring entries of the flat vector, the
    last one filled up with zeros, not a set of layers. tau counts rounds, not steps, and is below P. The sum of a round
    is not overlapped with the next one's training: ``delay`` gives the trajectory of a run that overlaps them. A client
    that sat out takes over, by the same alpha, every fragment that was moved meanwhile; a new one begins at w. Buffers
    (BatchNorm statistics) are averaged in every round, as in FedAvg. A round that brings nothing delays what was due in
    it by one round.
    """

    fragments: Annotated[int, Field(ge=1, le=1024, description="P, the number of fragments")] = 4
    delay: Annotated[
        int, Field(ge=0, le=1024, description="tau, rounds from a fragment's sum until it is applied; below fragments")
    ] = 0
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of a client's own entries where a fragment arrives; 0 = replace")
    ] = 0.0

    def __post_init__(self) -> None:
        if self.delay >= self.fragments:
            raise ValueError(
                f"delay={self.delay}: a fragment is summed again after {self.fragments} round(s); set delay below "
                "fragments"
            )

    @property
    def traits(self) -> Traits:
        """What arrives late would be added to another fragment."""
        kept: frozenset[Delivery] = frozenset({"whole", "lossy"})
        return replace(super().traits, deliveries=kept, fragments=self.fragments)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        buffers = spec.dim - spec.num_trainable
        return {"delta": self._length(spec.num_trainable), **({"buffers": buffers} if buffers else {})}

    def uploaded(self, spec: FlatSpec) -> FlatSpec:
        length = self._length(spec.num_trainable)
        return FlatSpec(("fragment",), ((length,),), length, length, spec.dtype)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        extra = {
            VERSION: w.new_zeros(self.fragments, dtype=torch.float64),
            DUE: w.new_full((self.fragments,), -1, dtype=torch.float64),
            PENDING: w.new_zeros(self.fragments * self._length(spec.num_trainable)),
        }
        for i in range(self.fragments):
            state = self.server_optimizer.init([w[self._of(i, spec.num_trainable)]])
            extra |= {f"{i}.{name}": vectors[0] for name, vectors in state.items()}
        return ServerState(w, spec, extra)

    def init_client(self, server: ServerState) -> ClientState:
        return {LOCAL: server.w[: server.num_trainable].unsqueeze(0), VERSION: server.extra[VERSION].unsqueeze(0)}

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        p, own, version = server.num_trainable, client[LOCAL], server.extra[VERSION]
        length = self._length(p)
        arrived = (client[VERSION] != version).repeat_interleave(length, dim=1)[:, :p]  # [K, num_trainable]
        own = torch.where(arrived, torch.lerp(server.w[:p].expand_as(own), own, self.alpha), own)
        result = local.train(torch.cat([own, server.w[p:].expand(len(own), -1)], dim=1))
        own = own + result.delta[:, :p]
        part = self._of(server.round % self.fragments, p)
        delta = own.new_zeros(len(own), length)
        delta[:, : part.stop - part.start] = own[:, part] - server.w[part]
        vectors = {"delta": delta, **({"buffers": result.delta[:, p:]} if p < len(server.w) else {})}
        return Update(vectors, self.weight(local)), {LOCAL: own, VERSION: version.expand(len(own), -1)}, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        now, p = server.round, server.num_trainable
        after = replace(server, w=server.w.clone(), extra={name: v.clone() for name, v in server.extra.items()})
        if "buffers" in mean.vectors:
            after.w[p:] += mean.vectors["buffers"]
        due, i = after.extra[DUE], now % self.fragments
        self._apply(after, [j for j, when in enumerate(due.tolist()) if 0 <= when <= now])
        after.extra[PENDING].view(self.fragments, -1)[i] = mean.vectors["delta"]
        due[i] = now + self.delay
        self._apply(after, [] if self.delay else [i])
        return replace(after, round=now + 1)

    def _apply(self, server: ServerState, fragments: Iterable[int]) -> None:
        """Move ``fragments`` of the global model by what waits for them, in place."""
        for i in fragments:
            part = self._of(i, server.num_trainable)
            waiting = server.extra[PENDING].view(self.fragments, -1)[i, : part.stop - part.start]
            state = {n.removeprefix(f"{i}."): [v] for n, v in server.extra.items() if n.startswith(f"{i}.")}
            self.server_optimizer.step_([server.w[part]], [-waiting], state)
            server.extra[VERSION][i] += 1
            server.extra[DUE][i] = -1

    def _length(self, p: int) -> int:
        """L, the entries of a fragment of ``p`` trainable ones."""
        return -(-p // self.fragments)

    def _of(self, i: int, p: int) -> slice:
        """The entries of fragment ``i``; fewer, or none, at the end."""
        length = self._length(p)
        return slice(min(p, i * length), min(p, (i + 1) * length))
