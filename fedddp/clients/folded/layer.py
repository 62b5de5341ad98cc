"""What the folded layers share: K weights as views into ``w [K, D]``, and what happens to a gradient when it is there.

A layer learns inside the backward pass, in one of two ways. *Descending*, it changes its weights in place and the
gradient is never stored: small clients are bound by memory, and a gradient would be written only to be read once.
*Collecting*, it writes the gradient to its place in ``g [K, P]`` for an optimizer or a correction that needs all of it.
"""

import torch
from torch import Tensor, nn


class FoldedLayer(nn.Module):
    """A layer of K clients at once. Inputs and outputs keep the shape of the plain layer's, with K B examples.

    Rows of client k are the k-th of K equal parts of the batch. ``weight [K, *shape]`` and ``bias [K, out]`` are views
    into the clients' vectors. Raises RuntimeError when it is used twice in one step: the second use would see weights
    that the first one has already changed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.token = torch.zeros((), requires_grad=True)  # ties a layer without differentiable input to the graph
        self.weight: Tensor
        self.bias: Tensor | None
        self._weight_grad: Tensor | None = None
        self._bias_grad: Tensor | None = None
        self.lr = 0.0
        self._armed = False

    def attach(self, views: dict[str, Tensor]) -> None:
        """Work on these weights [K, ...]."""
        self.weight, self.bias = views[f"{self.name}weight"], views.get(f"{self.name}bias")

    def collect(self, grads: dict[str, Tensor]) -> None:
        """Write the gradients there."""
        self._weight_grad, self._bias_grad = grads[f"{self.name}weight"], grads.get(f"{self.name}bias")

    def begin(self, start: dict[str, Tensor], lr: float, seen: int) -> None:
        """Descend by ``lr`` from ``start`` ([1, ...] or [K, ...]); the views hold nothing yet."""
        self.lr, self._weight_grad, self._bias_grad = lr, None, None
        self.weight_begins(start[f"{self.name}weight"], seen)
        if self.bias is not None:
            self.bias.copy_(start[f"{self.name}bias"])

    def finish(self, start: dict[str, Tensor]) -> None:
        """The views become what was added to ``start``."""
        self.weight_ends(start[f"{self.name}weight"])
        if self.bias is not None:
            self.bias.sub_(start[f"{self.name}bias"])

    def weight_begins(self, start: Tensor, seen: int) -> None:
        """The weight's part of `begin`; ``seen`` examples of a client will come."""
        self.weight.copy_(start)

    def weight_ends(self, start: Tensor) -> None:
        """The weight's part of `finish`."""
        self.weight.sub_(start)

    @property
    def num_clients(self) -> int:
        return len(self.weight)

    def arm(self) -> None:
        """A new step begins."""
        self._armed = True

    def use(self) -> None:
        """Note that the layer is used in this step."""
        if torch.is_grad_enabled():
            if not self._armed:
                raise RuntimeError(f"layer {self.name.rstrip('.')!r} is used more than once in a step")
            self._armed = False

    def learn(self, weight_grad: Tensor, bias_grad: Tensor) -> None:
        """Take in the gradients, [K, *shape] and [K, out]."""
        if self._weight_grad is None:
            self.weight.sub_(weight_grad, alpha=self.lr)
        else:
            self._weight_grad.copy_(weight_grad)
        self.learn_bias(bias_grad)

    def learn_bias(self, bias_grad: Tensor) -> None:
        """Take in the bias's gradient, [K, out]."""
        if self._bias_grad is not None:
            self._bias_grad.copy_(bias_grad)
        elif self.bias is not None:
            self.bias.sub_(bias_grad, alpha=self.lr)

    @property
    def collecting(self) -> bool:
        return self._weight_grad is not None
