"""Assemble a run with example-level differential privacy: DP-SGD on the clients."""

from __future__ import annotations

from ...aggregation import CountTally, Pipeline
from ...clients import LocalTrainingSpec, Trainer, choose_private
from ...config import ResolvedConfig
from ...data import ClientData, Examples
from ...privacy import Budget, ExampleBudget, Limits, Randomness, SpendLog
from ...tasks import Task
from ..noise import example_level_work
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

    def pipeline(self) -> Pipeline:
        return self._pipeline(self._reduce(), CountTally)
