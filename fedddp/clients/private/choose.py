"""Which private trainer for this model on this device, and how many clients at once: tried out before it is used."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...data import ClientData, Examples, Normalizer
from ...errors import first_line
from ...flat import training_in
from ...tasks import Task
from ..local import LocalTrainingSpec
from .ghost import GhostExamples
from .oracle import ClippedSums, OneByOneExamples, VmappedExamples, refuse_mixing
from .trainer import PrivateTrainer, RandomStream

PARAMETERS_AT_ONCE = {"cpu": 2**23, "cuda": 2**29}
EXAMPLES_AT_ONCE = {"cpu": 256, "cuda": 8192}
"""K B: with more, a batch of several clients saves nothing over one client's."""

Build = Callable[[nn.Module, "torch.device | str"], ClippedSums]
GHOST = "clipped without per-example gradients"
ONE_BY_ONE = "one backward pass an example"
VMAP = "per-example gradients by torch.func.vmap"
ORACLES: dict[str, Build] = {
    GHOST: GhostExamples,
    f"{GHOST}, contiguous": partial(GhostExamples, layout=torch.contiguous_format),
}
"""The fastest first; what they refuse, `VmappedExamples` may take, and `OneByOneExamples` takes anything."""


def choose_private(
    task: Task,
    data: ClientData,
    examples: Examples,
    spec: LocalTrainingSpec,
    randomness: RandomStream,
    *,
    clip: float,
    noise_multiplier: float,
    name: str = "auto",
    width: int = 0,
) -> tuple[PrivateTrainer, str]:
    """The DP-SGD trainer for ``client.execution.name`` and ``width`` (0 = by model and batch size), and why.

    Layers whose clipped sums need no per-example gradients where the model consists of them; else `torch.func`, if it
    knows all of the model; else one backward pass an example. Either of the first two is taken if in float64, on a few
    of ``examples``, it gives what the last one gives. Raises ValueError, in one line, for a model in which an example
    has no gradient of its own.
    """
    device, seed = spec.device, spec.seed
    module = task.model(seed).to(device, torch.float64)
    refuse_mixing(module)
    rows = torch.arange(6) % len(examples)
    normalize = Normalizer((0.3,), (1.0,), torch.float64, device)
    few = Examples(normalize(examples.x[rows].to(device)), examples.y[rows].to(device))
    _refuse_mixing_seen(module, few.x)
    try:
        expected = _sums(OneByOneExamples(module, device), task, few, seed)
    except Exception as error:
        raise ValueError(
            f"per-example gradients of this model fail ({first_line(error)}); correct that, or use privacy.level=client"
        ) from error
    build: Build = partial(OneByOneExamples, autocast=spec.autocast)
    how, reasons = ONE_BY_ONE, []
    vmapped: Build = partial(VmappedExamples, autocast=spec.autocast)
    for faster, candidate in {**({} if spec.autocast else ORACLES), VMAP: vmapped}.items():
        try:
            _try_out(candidate, task, few, seed, expected)
        except Exception as error:
            reasons.append(f"not {faster}: {first_line(error)}")
            continue
        build, how = candidate, faster
        break
    reason = f" ({'; '.join(reasons)})" if reasons else ""
    oracle = build(training_in(task.model(seed), spec.dtype), device)
    if name == "sequential":
        width = 1
    k = width or min(
        max(1, PARAMETERS_AT_ONCE[device.type] // oracle.spec.dim),
        max(1, EXAMPLES_AT_ONCE[device.type] // (spec.work.batch_size or int(data.sizes.max()) or 1)),
    )
    trainer = PrivateTrainer(task, data, spec, oracle, k, randomness, clip=clip, noise_multiplier=noise_multiplier)
    return trainer, f"by DP-SGD: {k} client{'s' if k > 1 else ''} at once, {how}{reason}"


def _refuse_mixing_seen(module: nn.Module, x: Tensor) -> None:
    """Raise ValueError if an example's outputs depend on the batch it is in, or on chance."""
    with torch.no_grad():
        together, alone = module.train()(x), torch.cat([module(row) for row in x.split(1)])
    if not torch.allclose(together, alone, rtol=1e-9, atol=1e-11):
        raise ValueError(
            "an example's outputs depend on the others in its batch, or on random numbers (dropout): there is no "
            "gradient of it alone to clip; leave dropout out, or use privacy.level=client"
        )


def _try_out(build: Build, task: Task, few: Examples, seed: int, expected: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError if ``build`` gives other sums, or norms, than are expected."""
    device = few.x.device
    for got, value in zip(_sums(build(task.model(seed).double(), device), task, few, seed), expected, strict=True):
        if not torch.allclose(got, value, rtol=1e-9, atol=1e-11):
            raise ValueError("other sums of clipped gradients than those of single examples")


def _sums(oracle: ClippedSums, task: Task, few: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """The sums [2, P] and norms of two clients with other weights and batches of 3 and 1, about half of it clipped."""
    half = len(few) // 2
    w = task.initial_params(seed).to(few.x.device, torch.float64)
    w = torch.stack([w, 0.9 * w])
    g = torch.full_like(w[:, : oracle.spec.num_trainable], torch.nan)
    oracle.collect(w, g)
    x, y = (part[: 2 * half].unflatten(0, (2, half)) for part in (few.x, few.y))
    mask = torch.ones(2, half, dtype=torch.bool, device=g.device)
    mask[1, 1:] = False
    norms = oracle.step(task, x, y, mask, 1.0)
    norms = oracle.step(task, x, y, mask, float(norms.mean()))
    return g, norms * mask
