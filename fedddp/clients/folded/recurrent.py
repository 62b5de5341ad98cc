"""LSTM and GRU of K clients, by whichever is faster: the library's LSTM client by client, or steps of all of them.

oneDNN's LSTM runs at the speed of large products even for few examples, and a call a client is what it takes. Where it
is not used (on a GPU, for a GRU), PyTorch's own steps are slow. Here a step is one product for all clients, and it
overwrites its gates' inputs by their values; the way back turns those into slopes, all steps at once, and then walks
from the last step to the first with one product each, by hand: autograd would record a dozen operations a step. What
does not depend on the step before (inputs, weight gradients) is one product of all steps.

Letters: K clients, T steps, B examples of a client, I inputs, H hidden numbers, G H gates (G = 4 LSTM, 3 GRU).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layer import FoldedLayer

NEAR = 2**19
"""Weights that a CPU's core keeps near from step to step: 2 MB in float32. With more clients at once than have that
many, each step would fetch their weights from memory anew, which takes 3 times as long."""


class FoldedRecurrent(FoldedLayer):
    """What LSTM and GRU share: layers on layers, the order of the axes, and hidden states if there are any."""

    def __init__(self, name: str, plain: nn.RNNBase) -> None:
        super().__init__(name, plain)
        self.input_size, self.hidden_size = plain.input_size, plain.hidden_size
        self.num_layers, self.batch_first = plain.num_layers, plain.batch_first

    @staticmethod
    def stands_for(plain: nn.RNNBase) -> bool:
        """One direction, no projection, no dropout between layers (it draws other numbers for clients together)."""
        return not plain.bidirectional and not plain.proj_size and not plain.dropout

    def batched(self, x: Tensor) -> Tensor:
        """``x`` with the examples' axis first. Raises ValueError for a single sequence."""
        if x.dim() != 3:
            raise ValueError(f"layer {self.name.rstrip('.')!r} needs sequences of a batch, [B, T, I] or [T, B, I]")
        return x if self.batch_first else x.transpose(0, 1)

    def flatten_parameters(self) -> None:
        """Called in many a forward; there is nothing to do."""

    def layers(self, x: Tensor, *states: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The last layer's outputs for ``x [K B, T, I]`` or [T, K B, I], and the final ``states [layers, K B, H]``."""
        x = self.batched(x)
        rows = x.unflatten(0, (self.num_clients, -1)).transpose(1, 2)  # [K, T, B, I]
        clients, _, batch, _ = rows.shape
        last: list[tuple[Tensor, ...]] = []
        for level in range(self.num_layers):
            zero = rows.new_zeros(clients, batch, self.hidden_size)
            first = [zero if s is None else s[level].unflatten(0, (clients, -1)) for s in states]
            rows, *more = _Level.apply(rows, self.token, self, level, *first)  # pyright: ignore[reportGeneralTypeIssues]
            last.append((rows[:, -1], *more))
        y = rows.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(0, 1)
        final = [torch.stack(levels).flatten(1, 2) for levels in zip(*last, strict=True)]
        return y if self.batch_first else y.transpose(0, 1), final

    def of_level(self, kind: str, level: int) -> Tensor | None:
        """The parameter ``kind`` of a layer, [K, ...]."""
        return self.own.get(f"{kind}_l{level}")

    def groups(self, weight: Tensor) -> list[slice]:
        """Clients whose recurrent ``weight [K, G H, H]`` a core keeps near; all of them on a GPU."""
        each = len(weight) if weight.is_cuda else max(1, NEAR // weight[0].numel())
        return [slice(first, first + each) for first in range(0, len(weight), each)]

    def ahead(self, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, *more: Tensor) -> Any:
        """All steps of some clients: ``gates [k, T, B, G H]`` come from the inputs; fills ``h [k, T + 1, B, H]``.

        Returns what `back` needs.
        """
        raise NotImplementedError

    def back(self, kept: Any, weight: Tensor, dy: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The gradients of the gates as the inputs and as the recurrent product see them, and of the first states."""
        raise NotImplementedError


class FoldedLSTM(FoldedRecurrent):
    """i, f, g, o = gates(x_t, h_{t-1});  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)  (Hochreiter & Schmidhuber 1997)."""

    by_library: ClassVar[bool] = True
    """Where that is faster; see above."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.use()
        if not (self.by_library and x.device.type == "cpu" and torch.backends.mkldnn.is_available()):
            y, (h, c) = self.layers(x, *(state or (None, None)))
            return y, (h, c)
        self.recorded = torch.is_grad_enabled()
        x = self.batched(x)
        zero = x.new_zeros(self.num_layers, len(x), self.hidden_size)
        y, h, c = _ByClient.apply(x, self.token, self, *(state or (zero, zero)))  # pyright: ignore[reportGeneralTypeIssues]
        return y if self.batch_first else y.transpose(0, 1), (h, c)

    def of_client(self, client: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The library's LSTM of one client: its weights as leaves of the graph, and what comes out of it.

        As data, since others' weights in the same memory change before this client's gradients are taken.
        """
        weights = [self.own[own][client].data.requires_grad_(self.recorded) for own in self.names]
        biased = "bias_hh_l0" in self.own
        out = torch.lstm(x, (h, c), weights, biased, self.num_layers, 0.0, self.recorded, False, True)
        return weights, out

    def ahead(self, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, *more: Tensor) -> Any:
        """See `FoldedRecurrent.ahead`."""
        (c,) = more  # [k, T + 1, B, H]
        if bias is not None:
            gates += bias[:, None, None]
        squashed = torch.empty_like(c[:, 1:])  # tanh(c)
        each = gates.unbind(1)
        both, o = (part.unbind(1) for part in (gates[..., : 2 * self.hidden_size], gates[..., 3 * self.hidden_size :]))
        i, f, g, _ = (part.unbind(1) for part in gates.chunk(4, dim=-1))
        hs, cs, tanhs, by_row = h.unbind(1), c.unbind(1), squashed.unbind(1), weight.mT
        for t in range(len(each)):
            each[t].baddbmm_(hs[t], by_row)
            both[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()
            torch.mul(f[t], cs[t], out=cs[t + 1]).addcmul_(i[t], g[t])
            torch.mul(o[t], torch.tanh(cs[t + 1], out=tanhs[t]), out=hs[t + 1])
        return gates, c, squashed

    def back(self, kept: Any, weight: Tensor, dy: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `FoldedRecurrent.back`."""
        gates, c, squashed = kept
        i, f, g, o = gates.chunk(4, dim=-1)
        to_cell = o * (1 - squashed.square())  # dc / dh
        inner = [g * i * (1 - i), c[:, :-1] * f * (1 - f), i * (1 - g.square())]  # of i, f and g, by dc
        slopes = torch.stack([*inner, squashed * o * (1 - o)], dim=3)  # [k, T, B, 4, H]
        d, by_cell, by_output = slopes.flatten(3), slopes[..., :3, :].unbind(1), slopes[..., 3, :].unbind(1)
        flat, dys, forget, to_cells = (a.unbind(1) for a in (d, dy, f, to_cell))
        dc = more[0].clone()  # [k, B, H]
        dh = dys[-1].clone()
        for t in range(len(flat) - 1, -1, -1):
            dc.addcmul_(dh, to_cells[t])
            by_cell[t].mul_(dc.unsqueeze(2))
            by_output[t].mul_(dh)
            dc.mul_(forget[t])
            if t:
                torch.baddbmm(dys[t - 1], flat[t], weight, out=dh)
        return d, d, (torch.bmm(flat[0], weight), dc)


class FoldedGRU(FoldedRecurrent):
    """r, z, n = gates(x_t, h_{t-1}), n = tanh(x' + r h');  h_t = (1 - z) n + z h_{t-1}  (Cho et al. 2014)."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.use()
        y, (h,) = self.layers(x, state)
        return y, h

    def ahead(self, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, *more: Tensor) -> Any:
        """See `FoldedRecurrent.ahead`."""
        recurrent = torch.empty_like(gates)  # h_{t-1} W^T + b
        inner = gates[..., : 2 * self.hidden_size].unbind(1), recurrent[..., : 2 * self.hidden_size].unbind(1)
        r, z, n = (part.unbind(1) for part in gates.chunk(3, dim=-1))
        offset, candidate = recurrent.chunk(3, dim=-1)[2], recurrent[..., 2 * self.hidden_size :].unbind(1)
        hs, products, by_row = h.unbind(1), recurrent.unbind(1), weight.mT
        for t in range(len(products)):
            torch.bmm(hs[t], by_row, out=products[t])
            if bias is not None:
                products[t].add_(bias.unsqueeze(1))
            inner[0][t].add_(inner[1][t]).sigmoid_()
            n[t].addcmul_(r[t], candidate[t]).tanh_()
            torch.lerp(n[t], hs[t], z[t], out=hs[t + 1])
        return gates, h, offset

    def back(self, kept: Any, weight: Tensor, dy: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `FoldedRecurrent.back`."""
        gates, h, offset = kept
        r, z, n = gates.chunk(3, dim=-1)
        by_n = (1 - z) * (1 - n.square())
        inner = [by_n * offset * r * (1 - r), (h[:, :-1] - n) * z * (1 - z)]
        slopes = torch.stack([*inner, by_n * r], dim=3)  # [k, T, B, 3, H] of dh, through the recurrent product
        d = slopes.flatten(3)
        flat, each, dys, keep, by_input = (a.unbind(1) for a in (d, slopes, dy, z, by_n))
        dh = dys[-1].clone()
        for t in range(len(flat) - 1, -1, -1):
            each[t].mul_(dh.unsqueeze(2))
            by_input[t].mul_(dh)
            dh.mul_(keep[t])
            if t:
                dh.add_(dys[t - 1])
            dh.baddbmm_(flat[t], weight)
        return torch.cat([d[..., : 2 * self.hidden_size], by_n], dim=-1), d, (dh,)


class _ByClient(torch.autograd.Function):
    """The library's LSTM for one client after the other: ``x [K B, T, I]`` and states [layers, K B, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: FoldedLSTM, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.layer, ctx.graphs = layer, []
        wanted = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]
        parts = [x.unflatten(0, (layer.num_clients, -1)), *(s.unflatten(1, (layer.num_clients, -1)) for s in states)]
        with torch.set_grad_enabled(layer.recorded):
            for client, own in enumerate(zip(parts[0], *(s.unbind(1) for s in parts[1:]), strict=True)):
                given = [t.detach().requires_grad_(grad) for t, grad in zip(own, wanted, strict=True)]
                weights, out = layer.of_client(client, *given)
                ctx.graphs.append((given, weights, out))
        outputs = zip(*(out for *_, out in ctx.graphs), strict=True)
        return tuple(
            torch.cat([o.detach() for o in each], dim=axis) for axis, each in zip((0, 1, 1), outputs, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer: FoldedLSTM = ctx.layer
        size = len(ctx.graphs)
        parts = zip(grads[0].chunk(size), *(g.chunk(size, dim=1) for g in grads[1:]), strict=True)
        inputs = []
        for client, ((given, weights, out), dout) in enumerate(zip(ctx.graphs, parts, strict=True)):
            leaves = [t for t in given if t.requires_grad]
            found = torch.autograd.grad(out, [*leaves, *weights], dout)
            inputs.append(found[: len(leaves)])
            for own, gradient in zip(layer.names, found[len(leaves) :], strict=True):
                layer.learn(own, gradient, client)
        total = iter(zip(*inputs, strict=True))
        wanted = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]
        dx, *rest = (torch.cat(next(total), dim=min(i, 1)) if grad else None for i, grad in enumerate(wanted))
        return dx, None, None, *rest


class _Level(torch.autograd.Function):
    """One layer: hidden states [K, T, B, H] after each step, then the final other states [K, B, H]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor, layer: FoldedRecurrent, level: int, *first: Tensor
    ) -> tuple[Tensor, ...]:
        clients, steps, batch, _ = x.shape
        w_in, w_rec, b_in, b_rec = (
            layer.of_level(kind, level) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        assert w_in is not None
        assert w_rec is not None
        ctx.layer, ctx.level, ctx.kept = layer, level, []
        ctx.x = x.reshape(clients, steps * batch, -1)
        inputs = ctx.x, w_in.mT
        gates = torch.bmm(*inputs) if b_in is None else torch.baddbmm(b_in.unsqueeze(1), *inputs)
        gates = gates.view(clients, steps, batch, -1)
        ctx.states = [s.new_empty(clients, steps + 1, batch, layer.hidden_size) for s in first]
        for states, s in zip(ctx.states, first, strict=True):
            states[:, 0] = s
        for k in layer.groups(w_rec):
            bias = None if b_rec is None else b_rec[k]
            h, *more = (s[k] for s in ctx.states)
            ctx.kept.append((k, layer.ahead(gates[k], h, w_rec[k], bias, *more)))
        h, *more = ctx.states
        return h[:, 1:], *(s[:, -1] for s in more)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer: FoldedRecurrent = ctx.layer
        w_in, w_rec = (layer.of_level(kind, ctx.level) for kind in ("weight_ih", "weight_hh"))
        assert w_in is not None
        assert w_rec is not None
        before = ctx.states[0][:, :-1].flatten(1, 2)
        dx = torch.empty_like(ctx.x) if ctx.needs_input_grad[0] else None
        biases, first = [], []
        for k, kept in ctx.kept:
            d_in, d_rec, d_first = layer.back(kept, w_rec[k], *(d[k] for d in grads))
            d_in, d_rec = d_in.flatten(1, 2), d_rec.flatten(1, 2)
            if dx is not None:
                torch.bmm(d_in, w_in[k], out=dx[k])
            layer.learn_product(f"weight_ih_l{ctx.level}", d_in, ctx.x[k], k)
            layer.learn_product(f"weight_hh_l{ctx.level}", d_rec, before[k], k)
            biases.append((d_in.sum(dim=1), d_rec.sum(dim=1)))
            first.append(d_first)
        for kind, parts in zip(("bias_ih", "bias_hh"), zip(*biases, strict=True), strict=True):
            layer.learn(f"{kind}_l{ctx.level}", torch.cat(parts))
        if dx is not None:
            _, steps, batch, _ = ctx.states[0].shape
            dx = dx.view(len(dx), steps - 1, batch, -1)
        return dx, None, None, None, *(torch.cat(parts) for parts in zip(*first, strict=True))
