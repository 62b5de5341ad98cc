"""Low-rank adapters inside a flat vector: pairs of factors, their products, and what averaging does to these.

A layer W with an adapter computes x W^T + s (x A^T) B^T, with A [r, in], B [out, r] and s = alpha / rank. Letters
besides those of `types`: L adapted layers, r the rank.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..flat import FlatSpec
from ..rng import generator
from ..types import ClientState, ClientUpdate, Cohort, Mean, ServerState, Update
from .base import Around, LocalTraining

DOWN, UP, RESIDUAL = "lora_A.default.weight", "lora_B.default.weight", "lora_residual.weight"
"""How the names of A, of B, and of the server's own addition to the layer end."""
PROBES = 8
"""Pairs of random vectors that the error of averaging is estimated by, for each adapted layer."""
PROBE, ERROR = "lora_probe", "metric.lora_error"


@dataclass(frozen=True)
class Adapters:
    """Where a model's adapters are in ``w``: ``layers``, what the names of each adapted layer's tensors begin with."""

    spec: FlatSpec
    layers: tuple[str, ...]

    @classmethod
    def of(cls, spec: FlatSpec) -> "Adapters":
        """Find the adapters of a model. Raises ValueError if it has none that train."""
        layers = adapted(spec)
        if not layers:
            raise ValueError("the model has no low-rank adapters; set model.lora.rank")
        return cls(spec, layers)

    def factors(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (A [..., r, in], B [..., out, r]) of each layer, views into ``w [..., D]``."""
        views = self.spec.views(w)
        return [(views[layer + DOWN], views[layer + UP]) for layer in self.layers]

    def products(self, w: Tensor) -> Tensor:
        """Return B A of every layer, side by side, [..., sum out in]."""
        return torch.cat([(b @ a).flatten(-2) for a, b in self.factors(w)], dim=-1)

    def norms(self, w: Tensor) -> Tensor:
        """Return ||B A|| over all layers of ``w [K, D]``, [K]; without the products: tr(A^T B^T B A)."""
        squares = [((b.mT @ b) * (a @ a.mT)).sum(dim=(-2, -1)) for a, b in self.factors(w)]
        return torch.stack(squares).sum(dim=0).clamp(min=0).sqrt()

    def residuals(self, w: Tensor) -> list[Tensor]:
        """Return the server's addition R [..., out, in] to each layer, views into ``w``, in units of s.

        Raises:
            ValueError: the model has none.
        """
        views = self.spec.views(w)
        if self.layers[0] + RESIDUAL not in views:
            raise ValueError("the model's adapted layers have no residual that the server could add to")
        return [views[layer + RESIDUAL] for layer in self.layers]

    @property
    def mask(self) -> Tensor:
        """Return which entries of w are factors, bool [D]."""
        return self.spec.mask([f"*{DOWN}", f"*{UP}"])

    def without_factors(self) -> FlatSpec:
        """Return the layout of w without the factors, all of it trained."""
        kept = [not name.endswith((DOWN, UP)) for name in self.spec.names]
        return self.spec.part(kept, int((~self.mask).sum()))

    def add_(self, w: Tensor, products: Tensor) -> Tensor:
        """Add ``products [..., sum out in]`` to the residuals in ``w [..., D]``, in place."""
        residuals = self.residuals(w)
        parts = products.split([residual.shape[-2:].numel() for residual in residuals], dim=-1)
        for residual, part in zip(residuals, parts, strict=True):
            residual += part.view_as(residual)
        return w

    def taken_(self, w: Tensor) -> Tensor:
        """Return the residuals in ``w [D]`` side by side, and set them to 0."""
        residuals = self.residuals(w)
        taken = torch.cat([residual.flatten() for residual in residuals])
        for residual in residuals:
            residual.zero_()
        return taken


@lru_cache(maxsize=16)
def adapted(spec: FlatSpec) -> tuple[str, ...]:
    """Return what the names of each adapted layer's tensors begin with; empty for a model without trained adapters."""
    names = set(spec.names)
    layers = (name.removesuffix(DOWN) for name in spec.names if name.endswith(DOWN))
    return tuple(layer for layer in layers if layer + UP in names)


@dataclass(frozen=True)
class AdapterError(Around):
    """``inner``, unchanged, whose server also estimates what is lost by averaging the factors instead of the products.

        error = || mean_k(B_k A_k) - mean_k(B_k) mean_k(A_k) || / || mean_k(B_k A_k) ||    (Frobenius, over all layers)

    Clients send no products for it: for fixed y, x ~ N(0, I), the mean of (y^T M x)^2 is ||M||^2, and y^T B_k A_k x is
    one number. `PROBES` of them for each layer give the ratio to a few percent where layers are many. It is in
    ``metrics.jsonl`` as ``lora_error``; with one client it is 0.
    """

    own = (ERROR,)

    def vectors(self, spec: FlatSpec) -> dict[str, int]:
        return {**super().vectors(spec), PROBE: PROBES * len(adapted(spec))}

    def init_server(self, w: Tensor, spec: FlatSpec) -> ServerState:
        return self.remembering(self.inner.init_server(w, spec), {ERROR: w.new_zeros(1)})

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = super().client_update(server, client, local)
        vectors = {**update.vectors, PROBE: probed(Adapters.of(server.spec), result.w)}
        return Update(vectors, update.weight), state, result

    def server_update(self, server: ServerState, mean: Mean, cohort: Cohort) -> ServerState:
        adapters, vectors = Adapters.of(server.spec), dict(mean.vectors)
        exact = vectors.pop(PROBE)
        averaged = probed(adapters, server.w + vectors["delta"])
        error = relative_error(averaged, exact)
        return self.remembering(
            super().server_update(server, replace(mean, vectors=vectors), cohort), {ERROR: error[None]}
        )


def relative_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """Return ||approximate - exact|| / ||exact||, a number; 0 where both are 0."""
    return (approximate - exact).norm() / exact.norm().clamp(min=torch.finfo(exact.dtype).tiny)


def probed(adapters: Adapters, w: Tensor) -> Tensor:
    """Return y^T B A x for the random pairs (y, x) of each layer, [..., `PROBES` L], of ``w [..., D]``."""
    found = []
    for i, (a, b) in enumerate(adapters.factors(w)):
        drawn = generator(0, "adapter probes", i)  # the same on every rank and in every round
        x = torch.randn(a.shape[-1], PROBES, generator=drawn, dtype=torch.float64).to(w)
        y = torch.randn(b.shape[-2], PROBES, generator=drawn, dtype=torch.float64).to(w)
        found.append(((b.mT @ y) * (a @ x)).sum(dim=-2))  # [..., r, probes] summed over r
    return torch.cat(found, dim=-1)
