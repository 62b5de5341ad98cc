"""FFA-LoRA: one factor of each adapter stays as it was drawn, so that a mean of the others is exact."""

from dataclasses import dataclass

from ..flat import FlatSpec
from .adapters import DOWN, Adapters
from .personal import Patterns, Personal


@dataclass(frozen=True)
class FFALoRA(Personal):
    """Sun, Li, Li, Ding 2024, "Improving LoRA in privacy-preserving federated learning" (ICLR).

        A_k = A_0 for all k and t;   B <- sum_k p_k B_k   =>   sum_k p_k (B_k A_0) = (sum_k p_k B_k) A_0

    The product is linear in what is trained, so averaging loses nothing, half of the numbers are sent, and noise for
    differential privacy is not multiplied with other noise.
    Symbols: A_0 = the entries lora_A of server.w, B_k = lora_B of local.train(server.w).w.
    """

    def patterns(self, spec: FlatSpec, key: str) -> Patterns:
        named = super().patterns(spec, key)
        return (*named, *(layer + DOWN for layer in Adapters.of(spec).layers)) if key == "frozen" else named
