"""Example-level differential privacy: DP-SGD on the clients."""

from __future__ import annotations

from ..aggregation import CountTally, Pipeline
from ..clients import Trainer, choose_private
from ..privacy import Budget, ExampleBudget, Limits, Randomness, SpendFile
from ..safeguards import example_level_work
from .plain import Plain


class Private(Plain):
    """What both levels have in common."""

    @property
    def sigma(self) -> float:
        assert self._keys.noise_multiplier is not None  # resolved
        return self._keys.noise_multiplier

    def _randomness(self, purpose: str, *path: int) -> Randomness:
        """This rank's own, which nobody else can predict; where it is seeded, a function of the seed and ``path``."""
        if self._keys.randomness == "seeded":
            return Randomness.seeded(self._p.config.run.seed, purpose, *path)
        return Randomness.secret()

    def _limits(self, spend_file: SpendFile | None) -> Limits:
        keys = self._keys
        return Limits(self.sigma, keys.delta, keys.target_epsilon, keys.accountant, spend_file)


class ExamplePrivacy(Private):
    """DP-SGD on the clients: what leaves one is private already, whoever reads it."""

    def budget(self, spend_file: SpendFile | None) -> Budget:
        rate, steps = example_level_work(self._p.config, self._p.data.sizes)
        return ExampleBudget(rate, steps, self._limits(spend_file))

    def trainer(self) -> tuple[Trainer, str]:
        p, randomness = self._p, self._randomness("example level")
        how = {**self._how(), "clip": self._keys.clip, "noise_multiplier": self.sigma}
        return choose_private(p.task, p.data, p.config.client.optimizer, p.test, randomness, **how)

    def pipeline(self) -> Pipeline:
        return self._pipeline(self._reduce(), CountTally)
