"""Secure aggregation: only the ranks' sum can be read (Bonawitz et al. 2017, Bell et al. 2020)."""

from ..types import RoundAborted
from .exchange import SecureExchange, identity_of
from .hello import LEAST_PARTIES, Greeting, HelloError, Session
from .identity import Identity, IdentityError, Roster
from .party import Party, TooFewParties
from .reveal import quorum

__all__ = [
    "LEAST_PARTIES",
    "Greeting",
    "HelloError",
    "Identity",
    "IdentityError",
    "Party",
    "Roster",
    "RoundAborted",
    "SecureExchange",
    "Session",
    "TooFewParties",
    "identity_of",
    "quorum",
]
