"""FedEx-LoRA: adapters are averaged, and what averaging loses goes into the layer."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..flat import FlatSpec
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .adapters import ERROR, Adapters, relative_error
from .base import LocalTraining, Traits
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedExLoRA(FedAvg):
    """Singhal, Ponkshe, Vepakomma 2024, "FedEx-LoRA: exact aggregation for federated and efficient fine-tuning of
    foundation models" (arXiv 2410.09432).

        (A, B) <- server step on sum_k p_k (A_k, B_k);    R <- R + sum_k p_k B_k A_k - B A

    after which R + B A is R + sum_k p_k B_k A_k of before, whatever the server optimizer is. The layer computes
    x (W + s R)^T + s (x A^T) B^T. ``lora_error`` in ``metrics.jsonl`` is the norm of what the averaged factors miss,
    over that of the mean product. Beside the adapters, as many numbers are sent as the adapted layers have (see
    `FLoRA`), B_k A_k - B A of the round before: in the entries of R, which clients do not change.
    Symbols: R = lora_residual in server.w, A_k, B_k = the factors in local.train(server.w).w, s = alpha / rank.
    """

    @property
    def traits(self) -> Traits:
        return replace(super().traits, moves_base=True)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        Adapters.of(spec)  # raises for a model without adapters
        return super().vectors(spec)

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        server = super().init_server(w, spec)
        return replace(server, extra={**server.extra, ERROR: w.new_zeros(1)})

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        adapters, result = Adapters.of(server.spec), local.train(server.w)
        moved = adapters.products(result.w) - adapters.products(server.w)
        delta = adapters.add_(result.delta.clone(), moved)  # where R is, which no client changes
        return Update({"delta": delta}, self.weight(local)), client, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        adapters, delta = Adapters.of(server.spec), mean.vectors["delta"].clone()
        product = adapters.products(server.w) + adapters.taken_(delta)  # sum_k p_k B_k A_k
        error = relative_error(adapters.products(server.w + delta), product)
        after = self.moved(server, delta, **{ERROR: error[None]})
        adapters.add_(after.w, product - adapters.products(after.w))
        return after
