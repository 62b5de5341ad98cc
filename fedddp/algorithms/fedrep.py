"""FedRep: a head of one's own, fitted first to the representation as it came."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from .base import Traits
from .fedper import FedPer


@dataclass(frozen=True)
class FedRep(FedPer):
    """Collins, Hassani, Mokhtari, Shakkottai 2021, "Exploiting shared representations for personalized federated
    learning", Algorithm 1.

        h_k   <- tau_h passes of SGD on f_k(phi_t, h_k) in h_k, phi_t held
        phi_k <- tau_phi passes of SGD on f_k(phi, h_k) in phi from phi_t, h_k held;   phi_{t+1} = mean of the phi_k

    Symbols: phi_t = the shared entries of server.w, h_k = client["personal.private"] (see `FedPer` for which these
    are), tau_h = head_epochs, tau_phi = client.local_epochs (the paper takes 10 and 1). Held entries do not
    move by weight decay or momentum either. Both parts go through the data in the same order. Buffers belong to the
    body, unless they are named private.
    """

    head_epochs: Annotated[
        int, Field(ge=1, le=10_000, description="tau_h, passes that train the head alone each round")
    ] = 10

    @property
    def traits(self) -> Traits:
        return replace(super().traits, trainings=2 * super().traits.trainings)

    def epochs_before(self) -> int:
        return self.head_epochs
