"""FedBN: normalisation layers of one's own."""

from dataclasses import dataclass

from ..flat import FlatSpec
from .masked import Masks
from .personal import Personal, Private


@dataclass(frozen=True)
class FedBN(Personal):
    """Li, Jiang, Zhang, Kamp, Dou 2021, "FedBN: federated learning on non-IID features via local batch
    normalization", Algorithm 1: every layer is averaged but the normalisation layers.

        w_{t+1}[l] = mean of w_k[l] for each layer l but BatchNorm;   client k keeps its own w_k[l] of these

    Their scale, shift and running statistics are private (a layer is one if its class is named ...Norm...: GroupNorm
    and LayerNorm too). ``private = ["*.running_*"]`` keeps the statistics alone (Andreux et al. 2020, SiloBN).
    Symbols: see `Personal`.
    """

    private: Private = ("@*Norm*",)

    def masks(self, spec: FlatSpec) -> Masks:
        """See `Personal.masks`. Raises ValueError for a model without normalisation layers, too."""
        if self == FedBN(inner=self.inner) and not spec.mask(self.private).any():
            raise ValueError(
                "algorithm.name='fedbn': each client keeps the normalisation layers, and the model has none "
                f"({', '.join(spec.names)}); use a model with them (such as mlp or vgg with model.norm=batch), or "
                "algorithm.name=fedavg"
            )
        return super().masks(spec)
