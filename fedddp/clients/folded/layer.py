"""What the folded layers share, and the linear layer of K clients.

Weights are views into ``w [K, D]``. A layer learns inside the backward pass, in one of two ways. *Descending*, it
changes its weights in place and the gradient is never stored: small clients are bound by memory, and a gradient would
be written only to be read once. *Collecting*, it writes the gradient to its place in ``g [K, P]`` for an optimizer or
a correction that needs all of it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

EVERY = slice(None)


class FoldedLayer(nn.Module):
    """A layer of K clients at once. Inputs and outputs keep the shape of the plain layer's, with K B examples.

    Rows of client k are the k-th of K equal parts of the batch. ``own`` has each parameter of the plain layer by its
    name, [K, *shape], as a view into the clients' vectors. Raises RuntimeError when it is used twice in one step: the
    second use would see weights that the first one has already changed. What is computed again in the backward pass
    (gradient checkpointing) is no second use: values behind the layer are needed again before it learns, or not at all.
    """

    layout: torch.memory_format = torch.channels_last
    """Of images that come out, in memory."""
    tried: ClassVar[bool] = False
    """Whether the layer has to see a few examples before it is used (see `was_tried`)."""

    def __init__(self, name: str, plain: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.names = tuple(own for own, _ in plain.named_parameters())
        self.token = torch.zeros((), requires_grad=True)  # ties a layer without differentiable input to the graph
        self.own: dict[str, Tensor] = {}
        self.lr, self.examples = 0.0, 0
        self._grads: dict[str, Tensor] | None = None
        self._armed: bool | None = False  # may be used; None once the forward pass is over

    @staticmethod
    def stands_for(plain: Any) -> bool:
        """Whether this layer computes what ``plain`` does."""
        return True

    @property
    def weight(self) -> Tensor:
        return self.own["weight"]

    @property
    def bias(self) -> Tensor | None:
        return self.own.get("bias")

    def attach(self, views: dict[str, Tensor]) -> None:
        """Work on these weights [K, ...]."""
        self.own = {own: views[self.name + own] for own in self.names}

    def collect(self, grads: dict[str, Tensor]) -> None:
        """Write the gradients there."""
        self._grads = {own: grads[self.name + own] for own in self.names}

    def begin(self, start: dict[str, Tensor], lr: float, seen: int) -> None:
        """Descend by ``lr`` from ``start`` ([1, ...] or [K, ...]), on ``seen`` examples of a client; the views hold
        nothing yet.
        """
        self.lr, self._grads = lr, None
        for own in self.names:
            self.begins(own, start[self.name + own], seen)

    def finish(self, start: dict[str, Tensor]) -> None:
        """The views become what was added to ``start``."""
        for own in self.names:
            self.ends(own, start[self.name + own])

    def begins(self, own: str, start: Tensor, seen: int) -> None:
        """One parameter's part of `begin`."""
        self.own[own].copy_(start)

    def ends(self, own: str, start: Tensor) -> None:
        """One parameter's part of `finish`."""
        self.own[own].sub_(start)

    @property
    def num_clients(self) -> int:
        return len(self.own[self.names[0]])

    def arm(self, examples: int) -> None:
        """A new step begins, on so many examples of all clients together."""
        self._armed, self.examples = True, examples

    def forwarded(self) -> None:
        """The step's forward pass is over: a further use computes again what it computed."""
        self._armed = None

    def was_tried(self) -> None:
        """Called after a step of one client without gradients, on 2 and on 3 examples."""

    def use(self) -> None:
        """Record that the layer is used in this step."""
        if torch.is_grad_enabled():
            if self._armed is False:
                raise RuntimeError(f"layer {self.name.rstrip('.')!r} is used more than once in a step")
            self._armed = self._armed and False

    def learn(self, own: str, gradient: Tensor, clients: slice | int = EVERY) -> None:
        """Take in a parameter's gradient [K, *shape], if there is such a parameter."""
        if own not in self.own:
            return
        if self._grads is None:
            self.own[own][clients].sub_(gradient, alpha=self.lr)
        else:
            self._grads[own][clients].copy_(gradient)

    def learn_product(self, own: str, dy: Tensor, x: Tensor, clients: slice = EVERY) -> None:
        """Take in a matrix's gradient dy_k^T x_k, from rows ``dy [K, R, out]`` and ``x [K, R, in]``."""
        if self._grads is None:
            self.own[own][clients].baddbmm_(dy.mT, x, alpha=-self.lr)
        else:
            torch.bmm(dy.mT, x, out=self._grads[own][clients])

    @property
    def collected(self) -> dict[str, Tensor] | None:
        """Where gradients go by the parameters' names, [K, *shape]; None while descending."""
        return self._grads


class FoldedLinear(FoldedLayer):
    """y_k = x_k W_k^T + b_k for each client k; ``x [K B, ..., in]``. No W_k at all while few examples have been seen.

    Descending from a start that all clients share, W_k = W_0 - lr sum_s dy_s^T x_s after steps s = 1, 2, ... So

        x W_k^T = x W_0^T - lr sum_s (x x_s^T) dy_s        dy W_k = dy W_0 - lr sum_s (dy dy_s^T) x_s

    needs W_0, the inputs x_s and the output gradients dy_s of the steps so far, and no W_k until the end, where one
    product of rank (examples seen) makes it. The products with W_0 are shared by all K clients. It is the same
    arithmetic in another order, with fewer operations as long as the examples seen are fewer than twice
    in out / (in + out): on average half of them are in the sums. (The dual form of a linear layer trained by gradient
    descent: Irie et al. 2022, "The dual form of neural networks revisited".)
    """

    def __init__(self, name: str, plain: nn.Linear) -> None:
        super().__init__(name, plain)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._factors: _Factors | None = None

    def collect(self, grads: dict[str, Tensor]) -> None:
        """See `FoldedLayer.collect`."""
        self._factors = None  # of training that an error ended
        super().collect(grads)

    def begins(self, own: str, start: Tensor, seen: int) -> None:
        """The weight is factored if the start is shared and few examples will be seen."""
        if own != "weight":
            super().begins(own, start, seen)
            return
        i, o = self.in_features, self.out_features
        self._factors = None
        if len(start) > 1 or seen * (i + o) > 2 * i * o:
            super().begins(own, start, seen)
        else:
            self._factors = _Factors(start[0], self.weight, seen, self.lr)

    def ends(self, own: str, start: Tensor) -> None:
        """The factored form is multiplied out: that is what was added."""
        if own != "weight" or self._factors is None:
            super().ends(own, start)
        else:
            self._factors.multiply_out()
            self._factors = None

    def forward(self, x: Tensor) -> Tensor:
        self.use()
        if self._factors and (x.dim() > 2 or len(x) // self.num_clients > self._factors.remaining):
            self._factors.give_up()  # several rows an example: more than was reckoned with
            self._factors = None
        return _Linear.apply(x, self.token, self)  # pyright: ignore[reportReturnType]

    def product(self, x: Tensor, y: Tensor) -> None:
        """Write x_k W_k^T + b_k to ``y [K, B, out]``."""
        if self._factors:
            self._factors.product(x, y)
            if self.bias is not None:
                y.add_(self.bias.unsqueeze(1))
        elif self.bias is None:
            torch.bmm(x, self.weight.mT, out=y)
        else:
            torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT, out=y)

    def pull(self, dy: Tensor) -> Tensor:
        """dy_k W_k, [K, B, in]."""
        return self._factors.pull(dy) if self._factors else torch.bmm(dy, self.weight)

    def learn_from(self, x: Tensor, dy: Tensor) -> None:
        """Take in the gradient dy_k^T x_k."""
        if self._factors:
            self._factors.append(x, dy)
        else:
            self.learn_product("weight", dy, x)
        self.learn("bias", dy.sum(dim=1))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: FoldedLinear) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        ctx.x = x.reshape(layer.num_clients, -1, layer.in_features)
        y = x.new_empty(*x.shape[:-1], layer.out_features)  # not a view: an activation may work on it in place
        layer.product(ctx.x, y.view(layer.num_clients, -1, layer.out_features))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        layer: FoldedLinear = ctx.layer
        dy = grads[0].reshape(layer.num_clients, -1, layer.out_features)
        dx = layer.pull(dy).view(ctx.shape) if ctx.needs_input_grad[0] else None  # before the weights change
        layer.learn_from(ctx.x, dy)
        return dx, None, None


class _Factors:
    """What K clients add to W_0, - lr dys_k^T xs_k: rows of ``xs [K, S, in]`` and ``dys [K, S, out]``, step by step."""

    def __init__(self, start: Tensor, target: Tensor, seen: int, lr: float) -> None:
        clients, out_features, in_features = target.shape
        self._start, self._target, self._lr = start, target, lr
        self._xs = start.new_empty(clients, seen, in_features)
        self._dys = start.new_empty(clients, seen, out_features)
        self._used = 0

    @property
    def remaining(self) -> int:
        """Rows of a client that may still come."""
        return self._xs.shape[1] - self._used

    def give_up(self) -> None:
        """Have the weights in ``target`` after all."""
        xs, dys = self._xs[:, : self._used], self._dys[:, : self._used]
        self._target.copy_(self._start).baddbmm_(dys.mT, xs, alpha=-self._lr)

    def product(self, x: Tensor, y: Tensor) -> None:
        clients, batch, _ = x.shape
        torch.mm(x.reshape(clients * batch, -1), self._start.t(), out=y.view(clients * batch, -1))
        if self._used:
            xs, dys = self._xs[:clients, : self._used], self._dys[:clients, : self._used]
            y.baddbmm_(torch.bmm(x, xs.mT), dys, alpha=-self._lr)

    def pull(self, dy: Tensor) -> Tensor:
        clients, batch, _ = dy.shape
        dx = torch.mm(dy.reshape(clients * batch, -1), self._start).view(clients, batch, -1)
        if self._used:
            xs, dys = self._xs[:clients, : self._used], self._dys[:clients, : self._used]
            dx.baddbmm_(torch.bmm(dy, dys.mT), xs, alpha=-self._lr)
        return dx

    def append(self, x: Tensor, dy: Tensor) -> None:
        clients, batch, _ = x.shape
        rows = slice(self._used, self._used + batch)
        self._xs[:clients, rows], self._dys[:clients, rows] = x, dy
        self._dys[clients:, rows] = 0  # clients that are done
        self._xs[clients:, rows] = 0
        self._used += batch

    def multiply_out(self) -> None:
        """Write it to ``target [K, out, in]``."""
        xs, dys = self._xs[:, : self._used], self._dys[:, : self._used]
        self._target.baddbmm_(dys.mT, xs, beta=0, alpha=-self._lr)
