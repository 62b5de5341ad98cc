"""K clients in one batch: their examples folded into the batch axis, each layer with K weights of its own."""

from .model import FoldedModel

__all__ = ["FoldedModel"]
