"""The embedding of K clients: each looks its tokens up in a table of its own."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layer import FoldedLayer


class FoldedEmbedding(FoldedLayer):
    """Rows of client k's table ``weight [K, V, E]`` for its part of the ids ``x [K B, ...]``.

    Descending, only rows that were looked up are touched. Those of ``padding_idx`` learn nothing. Ids that are the same
    for all examples, such as positions ``x [T]`` or [1, T], are looked up for each of them: [K B, T, E].
    """

    tried: ClassVar[bool] = True

    def __init__(self, name: str, plain: nn.Embedding) -> None:
        super().__init__(name, plain)
        self.num_embeddings, self.embedding_dim = plain.num_embeddings, plain.embedding_dim
        self.padding_idx = plain.padding_idx
        self._looked_up, self._before, self._shared = 0, 0, False

    @staticmethod
    def stands_for(plain: nn.Embedding) -> bool:
        """Not one that changes its weights in the forward pass, or whose gradient is sparse or scaled by counts."""
        return plain.max_norm is None and not plain.sparse and not plain.scale_grad_by_freq

    def forward(self, x: Tensor) -> Tensor:
        self.use()
        self._looked_up = len(x)
        if self._shared:
            x = x.expand(self.examples, *x.shape[x.dim() > 1 :])
        return _Embedding.apply(x, self.token, self)  # pyright: ignore[reportReturnType]

    def was_tried(self) -> None:
        """Ids are shared if they are as many whatever the number of examples."""
        self._shared, self._before = self._looked_up == self._before, self._looked_up

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The place of each id in the tables: client and row, of the shape of ``x``."""
        client = torch.arange(self.num_clients, device=x.device).repeat_interleave(len(x) // self.num_clients)
        return client.view(-1, *[1] * (x.dim() - 1)).expand_as(x), x

    def without_padding(self, x: Tensor, dy: Tensor) -> Tensor:
        """``dy`` with zeros where the id is that of padding."""
        return dy if self.padding_idx is None else dy.masked_fill((x == self.padding_idx).unsqueeze(-1), 0)

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """Take in the gradient: dy of each id is added to its row."""
        dy = self.without_padding(x, dy)
        if self.collected:
            self.collected["weight"].zero_().index_put_(self.rows(x), dy, accumulate=True)
        else:
            self.weight.index_put_(self.rows(x), dy * -self.lr, accumulate=True)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: FoldedEmbedding) -> Tensor:
        ctx.layer, ctx.x = layer, x
        return layer.weight[layer.rows(x)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.layer.learn_from(ctx.x, grads[0])
        return None, None, None
