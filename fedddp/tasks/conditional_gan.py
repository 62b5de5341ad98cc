"""A conditional generative adversarial network: it draws images of given classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from ..data import Dataset
from ..errors import UsageError
from ..rng import global_seed
from .losses import CrossEntropy, Loss
from .metrics import Sums
from .task import Task

MOST_COLUMNS = 100  # classes in an evaluation's picture


class Adversaries(nn.Module):
    """Generator G and discriminator D in one module, hence in one flat vector.

    ``pair`` has ``generator(z [B, latent], y) -> pixels in [0, 1]``, ``discriminator(x, y) -> [B]`` (the logit of
    "real") and ``latent``. D sees drawings as it sees data: normalised by ``mean`` and ``std`` a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, pair: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        missing = [name for name in ("generator", "discriminator", "latent") if not hasattr(pair, name)]
        if missing:
            raise ValueError(f"a conditional GAN needs a module with a {missing[0]}; use model.name=gan")
        self.generator: nn.Module = pair.generator  # pyright: ignore[reportAttributeAccessIssue]
        self.discriminator: nn.Module = pair.discriminator  # pyright: ignore[reportAttributeAccessIssue]
        self.latent: int = pair.latent  # pyright: ignore[reportAttributeAccessIssue]
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def draw(self, y: Tensor) -> Tensor:
        """Images of the classes ``y`` in [0, 1], [B, C, H, W], from noise of torch's global generator."""
        return self.generator(torch.randn(len(y), self.latent, device=y.device, dtype=self.mean.dtype), y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits [B, 3]: of x and of a drawing, as D learns from them, and of the drawing, as G does."""
        fake = (self.draw(y) - self.mean) / self.std
        real, drawn = self.discriminator(torch.cat([x, fake.detach()]), torch.cat([y, y])).chunk(2)
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, fixed, (fake, y))  # its gradient reaches G and not D
        return torch.stack([real, drawn, judged], dim=1)


@dataclass(frozen=True)
class Adversarial(Task):
    """G and D take a step each at the same weights, by one backward pass of the sum of their losses.

    Conditioned on the label y (Mirza & Osindero 2014, equation 2), with the non-saturating loss of G (Goodfellow et
    al. 2014, section 3), s the logit of D:

        D descends  softplus(-s(x, y)) + softplus(s(G(z, y), y)),    G descends  softplus(-s(G(z, y), y))

    Each term's gradient is zero in the other's parameters, so the flat gradient is (g_G, g_D), the simultaneous step of
    FedGAN (Rasouli et al. 2020, Algorithm 1), which also averages both networks: any algorithm here does.
    """

    samples: int = 8
    seed: int = 0

    classifies: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    primary: ClassVar[str] = ""

    def outputs(self, module: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        return module(x, y)  # [B, 3]

    def answers(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, list[Any]]:
        raise UsageError("a conditional GAN draws images and predicts nothing; use fedddp generate RUN CLASSES")

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        real, drawn, judged = outputs.unbind(dim=-1)
        return F.softplus(-real) + F.softplus(drawn) + F.softplus(-judged)

    def correct(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Whether D takes the real example for real and the drawing for drawn."""
        return (outputs[..., 0] > 0) & (outputs[..., 1] < 0)

    @property
    def sums(self) -> Sequence[Sums]:
        return []

    def pictures(self, module: nn.Module) -> dict[str, Tensor]:
        """The same noise each time, so that pictures of different rounds compare: a row a sample, a column a class.

        Of many classes the first `MOST_COLUMNS`.
        """
        columns = min(self.num_classes, MOST_COLUMNS)
        classes = torch.arange(columns).repeat(self.samples)
        return {"samples": drawn(module, classes, self.seed).unflatten(0, (self.samples, columns))}


def drawn(module: nn.Module, y: Tensor, seed: int) -> Tensor:
    """Images of the classes ``y`` in [0, 1], on the CPU; a function of ``seed`` and the model."""
    assert isinstance(module, Adversaries)
    with torch.no_grad(), global_seed(seed, "draw"):
        return module.draw(y.to(module.mean.device)).float().clamp(0, 1).cpu()


@dataclass(frozen=True)
class ConditionalGAN:
    """Draw inputs of a given label. There is no accuracy; ``test_loss`` is that of both networks on the test set."""

    samples: Annotated[int, Field(ge=1, le=1000, description="drawings of each class in an evaluation's picture")] = 8

    def build(self, make_model: Callable[[], nn.Module], loss: Loss, dataset: Dataset) -> Task:
        if loss != CrossEntropy():
            raise ValueError("a conditional GAN has losses of its own; leave the section loss out")
        mean, std = dataset.mean, dataset.std
        if dataset.train.x.dtype != torch.uint8:  # taken as they are
            mean, std = (0.0,), (1.0,)

        def adversaries() -> nn.Module:
            pair = make_model()
            return Adversaries(pair, mean, std).to(next(pair.parameters()).dtype)

        return Adversarial(adversaries, dataset.num_classes, samples=self.samples)
