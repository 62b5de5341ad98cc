"""An algorithm as a user would have it: a subclass of Algorithm that declares nothing."""

from dataclasses import dataclass, replace

from fedddp.algorithms import Algorithm
from fedddp.types import ServerState, Update


@dataclass(frozen=True)
class Bare(Algorithm):
    """w_{t+1} = w_t + step mean_k (w_k - w_t)."""

    step: float = 1.0

    def vectors(self, spec):
        return {"delta": spec.dim}

    def init_server(self, w, spec):
        return ServerState(w, spec)

    def client_update(self, server, client, local):
        result = local.train(server.w)
        return Update({"delta": result.delta}, local.num_examples), client, result

    def server_update(self, server, mean, cohort):
        return replace(server, w=server.w + self.step * mean.vectors["delta"], round=server.round + 1)
