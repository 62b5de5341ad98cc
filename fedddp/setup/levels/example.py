"""Assemble a run with example-level differential privacy: DP-SGD on the clients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...aggregation import CountTally, Pipeline
from ...clients import CanaryTrainer, LocalTrainingSpec, PrivateTrainer, Trainer, choose_private
from ...config import ResolvedConfig
from ...data import ClientData, Examples
from ...federation import Federation
from ...privacy import Budget, Canaries, ExampleBudget, Limits, Randomness, SpendLog
from ...rng import generator
from ...tasks import Task
from ..noise import example_level_work, participations
from .plain import Plain


class Private(Plain):
    """Base class of both levels of differential privacy: noise and its limits."""

    def _randomness(self, purpose: str, *path: int) -> Randomness:
        """Return randomness that no other rank can predict; if it is seeded, a function of the seed and ``path``."""
        return _randomness(self._p.config, purpose, *path)

    def _limits(self, spend_file: SpendLog | None) -> Limits:
        keys = self._keys
        return Limits(self._p.config.noise_multiplier, keys.delta, keys.target_epsilon, keys.accountant, spend_file)


def _randomness(config: ResolvedConfig, purpose: str, *path: int) -> Randomness:
    if config.privacy.randomness == "seeded":
        return Randomness.seeded(config.run.seed, purpose, *path)
    return Randomness.secret()


class ExamplePrivacy(Private):
    """DP-SGD on the clients: an update is private before it leaves its client."""

    unit = "example"
    clips_gradients = True

    def budget(self, spend_file: SpendLog | None) -> Budget:
        rate, steps = example_level_work(self._p.config, self._p.data.sizes)
        return ExampleBudget(rate, steps, self._limits(spend_file))

    @staticmethod
    def planned(config: ResolvedConfig, rounds: range) -> Tensor | int:
        """See `Plain.planned`."""
        return participations(config, rounds)

    @classmethod
    def trainer(
        cls, config: ResolvedConfig, task: Task, data: ClientData, examples: Examples, spec: LocalTrainingSpec
    ) -> tuple[Trainer, str]:
        """See `Plain.trainer`."""
        execution = config.client.execution
        return choose_private(
            task,
            data,
            examples,
            spec,
            _randomness(config, "example level"),
            clip=config.privacy.clip,
            noise_multiplier=config.noise_multiplier,
            name=execution.name,
            width=execution.width,
        )

    def planted(self, f: Federation, canaries: Canaries, most: int) -> Federation:
        """See `Plain.planted`; all examples of the clients that spend most are canaries, and other clients idle."""
        p, sizes, rounds = self._p, self._p.data.sizes, torch.zeros(self._p.data.num_clients)
        for t in range(f.rounds):
            rounds[list(f.sampler.cohort(t).ids)] += 1
        rate, steps = example_level_work(p.config, sizes)
        base, _ = self.trainer(p.config, p.task, p.data, p.test, p.training)  # of its own: no noise is drawn twice
        assert isinstance(base, PrivateTrainer)
        trainer, stream = CanaryTrainer(base), generator(p.config.run.seed, "audit")
        rows: dict[int, slice] = {}
        given: dict[int, tuple[Tensor, Tensor]] = {}
        for k in (rate * (steps * rounds).sqrt()).argsort(descending=True, stable=True).tolist():
            own = min(int(sizes[k]), len(trainer.coordinates), most)
            if own and rounds[k]:
                rows[k], most = canaries.add(own, stream), most - own
                numbers = torch.randperm(len(trainer.coordinates), generator=stream)[:own]
                given[k] = numbers, canaries.included[rows[k]]
        trainer.plant(given, lambda k, x: canaries.see(rows[k], x, float(rate[k])))
        return replace(f, trainer=trainer)

    def pipeline(self) -> Pipeline:
        return self._pipeline(self._reduce(), CountTally)
