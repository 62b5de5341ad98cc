"""Predict the next token at each position of a sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import Dataset
from ..data.targets import IGNORED
from ..rng import global_seed
from .losses import CrossEntropy, Loss
from .metrics import Positions, Sums
from .task import Task


@dataclass(frozen=True)
class NextToken(Task):
    """Scores of V tokens at each position, [B, T, V]. An example's loss is the mean over its positions that count.

    Targets are `IGNORED` at the positions that do not: padding has no part in the loss, the gradient and the metrics.
    ``prompt``: token ids that a sample of text begins with, ``length`` more are drawn at ``temperature`` by ``seed``,
    or fewer where ``end`` is drawn, which is left out.
    """

    loss_of: Loss = CrossEntropy()
    prompt: tuple[int, ...] = ()
    length: int = 0
    temperature: float = 1.0
    context: int = 1
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)
    seed: int = 0
    end: int | None = None

    targets: ClassVar[str] = "positions"
    classifies: ClassVar[bool] = False
    primary: ClassVar[str] = "perplexity"

    def output_shape(self, y: Tensor) -> tuple[int, ...]:
        return (*y.shape, self.num_classes)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See `Task.loss`."""
        counted = y != IGNORED
        losses = self.loss_of(outputs.flatten(0, 1), y.clamp(min=0).flatten()).view_as(y)
        return (losses * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The fraction of each example's positions that count at which the largest score is right, [B]."""
        counted = y != IGNORED
        return ((outputs.argmax(dim=-1) == y) & counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1).double()

    @property
    def sums(self) -> Sequence[Sums]:
        return [Positions()]

    def texts(self, module: nn.Module, device: torch.device) -> dict[str, str]:
        """A continuation of the prompt, drawn token by token; the same draws each time, so that rounds compare."""
        if self.decode is None or not self.length:
            return {}
        return {"sample": self.decode(self._continued(lambda x: module(x.to(device)), self.prompt))}

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        """See `Task.answers`: each prompt, continued by ``length`` tokens; padding in front of it is left out."""
        texts = [self._continued(predict, row[row != 0].tolist() or [1]) for row in x]
        return {"text": [self.decode(tokens) if self.decode else " ".join(map(str, tokens)) for tokens in texts]}

    def _continued(self, predict: Callable[[Tensor], Tensor], prompt: Sequence[int]) -> list[int]:
        tokens = list(prompt)
        with torch.no_grad(), global_seed(self.seed, "text"):
            for _ in range(self.length):
                scores = predict(torch.tensor([tokens[-self.context :]]))[0, -1].float()
                scores[0] = -torch.inf  # padding is no text
                p = torch.softmax(scores / self.temperature, dim=-1).cpu()
                token = int(torch.multinomial(p, 1)) if bool(p.isfinite().all()) else 0
                if token == self.end:
                    break
                tokens.append(token)
        return tokens


@dataclass(frozen=True)
class NextTokenPrediction:
    """Predict the next token at each position of a sequence; perplexity, accuracy, bits per character."""

    sample_length: Annotated[
        int, Field(ge=0, le=10_000, description="tokens of the sample of text at an evaluation; 0 = none")
    ] = 120
    temperature: Annotated[float, Field(gt=0, le=1e9, description="of the sample: below 1, likelier tokens")] = 0.8

    targets: ClassVar[str] = "positions"
    natural: ClassVar[Loss] = CrossEntropy()

    def outputs(self, dataset: Dataset) -> int:
        """V."""
        return dataset.num_classes

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        first = dataset.test.x[0]
        context = len(first)
        prompt = tuple(first[first != 0][: max(1, context // 2)].tolist()) or (1,)
        sample = (prompt, self.sample_length, self.temperature, context, dataset.decode)
        return NextToken(make_model, dataset.num_classes, loss, *sample)
