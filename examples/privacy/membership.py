"""See what a model gives away of who was in its training data: membership inference without and with DP-SGD.

    python -m examples.privacy.membership [--data.root=FOLDER] [--pool=1000] [--models=16] [--epsilon 8 1] [--seed=0]

Trains many models of the mlp (199,210 parameters), each on a random half of the pool, first to the last example right,
then with example-level DP-SGD, and attacks half of them, each with all others as the attacker's shadow models: the loss
threshold and LiRA. Prints AUCs with 95% intervals, and a control in which nobody is a member. A minute on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from examples.privacy.attacks.shadows import Pool, Verdict, attack, confidences, trained
from fedddp.clients import LocalTrainingSpec, Trainer, choose
from fedddp.clients.private import choose_private, private_steps, sampling_rate
from fedddp.data import DATASETS, ClientData, Dataset, Examples, Work
from fedddp.models import MODELS
from fedddp.optim import SGD
from fedddp.privacy import Randomness, calibrate
from fedddp.registry.choice import user_path
from fedddp.rng import generator
from fedddp.tasks import Task
from fedddp.telemetry import console, lasting_output

DELTA, CLIP = 1e-5, 1.0
PLAIN = LocalTrainingSpec(SGD(lr=0.1), Work(epochs=20, batch_size=10))
PRIVATE = LocalTrainingSpec(SGD(lr=1.0), Work(epochs=10, batch_size=100))
CPU = torch.device("cpu")


class Study:
    """Models on random halves of a pool, and as many held-out examples."""

    def __init__(self, dataset: Dataset, size: int, models: int, seed: int) -> None:
        """Raises ValueError if the dataset is too small, or the number of models odd or below 4."""
        train = dataset.train
        if len(train) < 2 * size:
            raise ValueError(f"a pool of {size} and as many held-out examples: there are only {len(train)}")
        drawn = torch.randperm(len(train), generator=generator(seed, "membership"))[: 2 * size]
        inside, self._held_out = (Examples(train.x[rows], train.y[rows]) for rows in drawn.split(size))
        self._pool, self._dataset, self._seed = Pool.of(inside, models, seed), dataset, seed
        shape = tuple(train.x.shape[1:])
        self._task = Task(lambda: MODELS["mlp"]().build(shape, dataset.num_classes), dataset.num_classes)
        self._data: ClientData = self._pool.clients(dataset, CPU, torch.float32)

    def sigma(self, epsilon: float) -> float:
        """The noise multiplier for ``epsilon``, of the model with the fewest examples: it samples the most often."""
        work, sizes = PRIVATE.work, self._data.sizes.tolist()
        rates = [sampling_rate(n, work.batch_size) for n in sizes]
        steps = [private_steps(n, work.epochs, work.batch_size) for n in sizes]
        return calibrate(epsilon, max(rates), max(steps), DELTA)

    def judged(self, sigma: float | None) -> tuple[Verdict, float, float]:
        """Train, attack; the verdict, the accuracy on members and on held-out examples."""
        w = trained(self._trainer(sigma), self._task, len(self._pool.members), self._seed)
        inside, outside = (self._confidences(w, of) for of in (self._pool.examples, self._held_out))
        members = self._pool.members
        verdict = attack(inside, members, outside, targets=len(w) // 2, seed=self._seed)
        return verdict, float((inside[members] > 0).double().mean()), float((outside > 0).double().mean())

    def _confidences(self, w: Tensor, of: Examples) -> Tensor:
        return confidences(self._task, w, of, self._data.normalize)

    def _trainer(self, sigma: float | None) -> Trainer:
        spec = replace(PLAIN if sigma is None else PRIVATE, seed=self._seed)
        inputs = self._task, self._data, self._dataset.test, spec
        if sigma is None:
            return choose(*inputs)[0]
        return choose_private(*inputs, Randomness.secret(), clip=CLIP, noise_multiplier=sigma)[0]


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.privacy.membership",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data.root", dest="root", type=user_path, help="the real MNIST's folder [embedded mnist-mini]"
    )
    parser.add_argument("--pool", type=int, default=1000, help="examples; a model is trained on half of them [1000]")
    parser.add_argument("--models", type=int, default=16, help="an even number; half of them are attacked [16]")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[8.0, 1.0], help="privacy budgets [8 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the pool, the halves and the initial models [0]")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        if args.pool < 20 or any(epsilon <= 0 for epsilon in args.epsilon):
            raise ValueError("--pool should be 20 or more, and every --epsilon above 0")
        dataset = DATASETS["mnist" if args.root else "mnist-mini"](args.root or Path(), False)
        study = Study(dataset, args.pool, args.models, args.seed)
    except ValueError as error:
        print(f"fedddp: {error}", file=sys.stderr)
        return 2
    table = _table(args)
    for epsilon in (None, *args.epsilon):
        began = time.monotonic()
        sigma = None if epsilon is None else study.sigma(epsilon)
        verdict, inside, outside = study.judged(sigma)
        print(f"{_name(epsilon, sigma)}: {time.monotonic() - began:.0f} s", flush=True)
        levels = [str(v) for v in (verdict.loss, verdict.offline, verdict.online, verdict.control)]
        found = f"{100 * verdict.online.found_at_1_percent:.1f}%"
        table.add_row(_name(epsilon, sigma), f"{inside:.3f}", f"{outside:.3f}", *levels, found)
    console(170).print(table)
    print(
        f"Intervals: bootstrap over the {args.pool} examples, for these {args.models // 2} attacked models. "
        f"epsilon: example level, delta {DELTA:g}, Poisson sampling, add-or-remove adjacency, of one model; "
        "it bounds every attack, an AUC is what these attacks reached. TPR: fraction of the members that LiRA online "
        "finds at 1% false alarms."
    )
    return 0


def _name(epsilon: float | None, sigma: float | None) -> str:
    return "no DP" if epsilon is None else f"epsilon {epsilon:g} (sigma {sigma:.2f})"


def _table(args: argparse.Namespace) -> Table:
    table = Table(title=f"membership AUC [95%], {args.models // 2} models, half of {args.pool} examples each")
    table.add_column("training", no_wrap=True)
    for column in ("accuracy in", "held-out", "loss threshold", "LiRA offline", "LiRA online", "control", "TPR at 1%"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
