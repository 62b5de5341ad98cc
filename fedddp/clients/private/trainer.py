"""DP-SGD on the client (Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133, Algorithm 1).

Client k owns n_k examples. Each of its steps draws every one of them with probability q_k = min(1, B / n_k), apart from
all others (Poisson sampling: the drawn number varies and may be 0), and takes

    g_k = ( sum_b clip_C(g_kb) + sigma C N(0, I) ) / (q_k n_k)

to the algorithm's correction and to the optimizer, which see nothing else of the data: what they do is post-processing.
One example more or less moves the sum by C at most, so T such steps are T compositions of the Poisson-sampled Gaussian
mechanism (q_k, sigma) under zero-out adjacency: with or without the gradient of one example. The number of steps and
the divisor follow from n_k, which is public here; it is the weight of the mean. The divisor is the expected batch,
never the drawn one: that would tell how many were drawn.

Not protected: n_k itself; how long a step takes; the float rounding of noise and sum (see `privacy.randomness`). A
client's whole data is protected by the example-level guarantee only as a group of n_k.

Letters: K clients of one block, A of them at work, B expected examples of a batch, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...comm import interrupt
from ...data import ClientData, Work
from ...tasks import Task
from ...types import LocalResult
from ..local import Correction, Local, LocalTrainingSpec, Trainer
from .oracle import ClippedSums


class RandomStream(Protocol):
    """A stream of random numbers that nobody can predict; see `privacy.randomness`, which stands on this floor too."""

    def child(self, purpose: str, *path: int) -> RandomStream:
        """A stream of its own."""
        ...

    def bernoulli(self, n: int, p: float) -> Tensor:
        """True with probability ``p``, bool [n]."""
        ...

    def normal(self, n: int, dtype: torch.dtype) -> Tensor:
        """Standard normal [n], on the CPU."""
        ...


def sampling_rate(size: int, batch_size: int) -> float:
    """q_k = min(1, B / n_k); ``batch_size`` 0 takes everything, q = 1. What the accountant needs."""
    return min(1.0, batch_size / size) if batch_size and size else 1.0


def private_steps(size: int, epochs: int, batch_size: int) -> int:
    """Steps of a client in a round, max(1, round(E / q_k)); none without examples. What the accountant needs."""
    return max(1, round(epochs / sampling_rate(size, batch_size))) if size else 0


class PrivateTrainer(Trainer):
    """Noisy steps on ``width`` clients at once, one at a time if it is 1: the same numbers either way, to rounding.

    Batches and noise of a client in a round are streams of their own, ``randomness.child("batches", round, client)``
    and ``child("noise", round, client)``: they depend neither on who trains beside it nor on the rank. A client that
    fails and is tried again repeats both, so what comes out is what would have come out. Trained twice in earnest, the
    same noise on two results would cancel in their difference, and nobody would have counted the second: an algorithm
    that calls ``local.train`` more than once is refused (RuntimeError).

    `LocalResult.loss` and ``accuracy`` are NaN. Both would be means over the drawn examples without clipping or noise,
    so a single example could show in them; what is never computed cannot be released by mistake.
    """

    def __init__(
        self,
        task: Task,
        data: ClientData,
        spec: LocalTrainingSpec,
        oracle: ClippedSums,
        width: int,
        randomness: RandomStream,
        *,
        clip: float,
        noise_multiplier: float,
    ) -> None:
        """``clip`` is C, ``noise_multiplier`` sigma. Raises ValueError."""
        super().__init__(task, data, spec)
        if not 0 < clip < float("inf"):
            raise ValueError(f"clip={clip}: should be above 0; without a bound no noise is enough")
        if not 0 <= noise_multiplier < float("inf"):
            raise ValueError(f"noise_multiplier={noise_multiplier}: should be 0 or more")
        self.oracle, self.width, self._randomness = oracle, width, randomness
        self._clip, self._sigma = clip, noise_multiplier
        self._trained: Local | None = None

    def train(self, local: Local, start: Tensor, correct: Correction | None) -> LocalResult:
        """See `Local.train`."""
        asked = local.origin or local
        if asked is self._trained:
            raise RuntimeError(
                "a client trains once a round under differential privacy: a second time is not accounted"
            )
        if local.contrast is not None:
            raise RuntimeError("features are not compared under differential privacy: their loss is not clipped")
        if local.epochs is not None:
            raise RuntimeError(
                "local epochs are the configured ones under differential privacy: others are not accounted"
            )
        self._trained = asked
        start = start.view(-1, start.shape[-1])  # [1, D], or [K, D]
        clients = [
            _Client(n, self._training.work, self._randomness, (local.round, k))
            for n, k in zip(local.num_examples.tolist(), local.ids, strict=True)
        ]
        w = start.expand(len(clients), -1).clone()
        trainable = w[:, : self.oracle.spec.num_trainable]
        g = torch.zeros_like(trainable)
        self.oracle.collect(w, g)
        rows = list(trainable)
        with torch.no_grad():
            optimizer = local.optimizer
            state = optimizer.init(rows)
        for t in range(max(client.steps for client in clients)):
            interrupt.check()
            at_work = [i for i, client in enumerate(clients) if client.steps > t]
            first = at_work[-1] + 1  # the first A clients: of those in between the sums are zero
            self._clipped_sums(local.ids[:first], clients[:first], t, g[:first])
            with torch.no_grad():
                for i in at_work:
                    self._make_private(g[i], clients[i])
                gradients = correct(g, trainable) if correct else g
                moments = {name: [vectors[i] for i in at_work] for name, vectors in state.items()}
                optimizer.step_([rows[i] for i in at_work], [gradients[i] for i in at_work], moments)
        nan = torch.full((len(clients),), torch.nan, dtype=torch.float64)
        return LocalResult(start, w.sub_(start), torch.tensor([c.steps for c in clients]), nan, nan.clone())

    def loss(self, local: Local, w: Tensor) -> Tensor:
        """Refused (RuntimeError): an exact loss of a client's examples is bounded by no noise."""
        raise RuntimeError("a client's loss is not computed under differential privacy: it is not accounted")

    def _clipped_sums(self, ids: Sequence[int], clients: Sequence[_Client], t: int, g: Tensor) -> None:
        """Draw step ``t``'s batches and write their clipped sums to ``g [A, P]``, where the oracle writes."""
        drawn = [client.draw(t) for client in clients]
        sizes = torch.tensor([len(rows) for rows in drawn])
        if not sizes.any():
            g.zero_()  # an empty batch is a step all the same, of noise only
            return
        index = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)  # [A, most drawn]
        mask = (torch.arange(index.shape[1]) < sizes.unsqueeze(1)).to(g.device)
        self.oracle.step(self._task, *self._gather(ids, index), mask, self._clip)

    def _gather(self, ids: Sequence[int], index: Tensor) -> tuple[Tensor, Tensor]:
        """The examples at ``index [K, B]`` of each client's own: [K, B, ...] and labels."""
        x, y = self.data.gather(ids, index.unsqueeze(0))
        return x[0], y[0]

    def _make_private(self, total: Tensor, client: _Client) -> None:
        """Noise on a client's sum [P], then the division by what a batch is expected to hold."""
        if self._sigma:
            noise = client.noise.normal(len(total), total.dtype).to(total.device)
            total.add_(noise, alpha=self._sigma * self._clip)
        total.div_(client.expected)


class _Client:
    """One client's draws in one round."""

    def __init__(self, size: int, work: Work, randomness: RandomStream, path: tuple[int, int]) -> None:
        batch_size = work.batch_size
        self.size, self.steps = size, private_steps(size, work.epochs, batch_size)
        self.rate = sampling_rate(size, batch_size)
        self.expected = min(batch_size, size) if batch_size else size  # q_k n_k
        self.noise = randomness.child("noise", *path)
        self._batches = randomness.child("batches", *path)

    def draw(self, t: int) -> Tensor:
        """Which of its examples are in step ``t``, int64 [any number]; called with t = 0, 1, ..."""
        if t >= self.steps:
            return torch.zeros(0, dtype=torch.long)
        if self.rate == 1:
            return torch.arange(self.size)
        return self._batches.bernoulli(self.size, self.rate).nonzero().flatten()
