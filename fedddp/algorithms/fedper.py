"""FedPer: a head of one's own."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ..flat import FlatSpec
from .personal import Patterns, Personal


@dataclass(frozen=True)
class FedPer(Personal):
    """Arivazhagan, Aggarwal, Singh, Choudhary 2019, "Federated learning with personalization layers", Algorithm 1
    (server) and 2 (clients).

        (W_B, W_P_k) <- E epochs of SGD on client k from (W_B, W_P_k);   W_B <- sum_k (n_k / n) W_B_k

    Base and personalization layers are trained together; only the base is sent.
    Symbols: W_B = the shared entries of server.w, W_P_k = client["personal.private"]: the last ``head`` layers (K_P in
    the paper), or what ``private`` names.
    """

    head: Annotated[
        int, Field(ge=1, le=10_000, description="layers at the model's end that are private, unless private names them")
    ] = 1

    def patterns(self, spec: FlatSpec, key: str) -> Patterns:
        if key != "private" or self.private:
            return super().patterns(spec, key)
        layers = spec.layers()
        if len(layers) <= self.head:
            raise ValueError(
                f"algorithm.head={self.head}: each client keeps so many of the last layers, and the model has only "
                f"{len(layers)} ({', '.join(layers)}): one at least must be shared; "
                "use a model with more layers, or algorithm.name=fedavg"
            )
        return tuple(f"{layer}.*" for layer in layers[-self.head :])
