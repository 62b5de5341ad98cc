"""The runs of the privacy demonstration: the same digits and the same first step, protected in different ways."""

from __future__ import annotations

from dataclasses import dataclass

RANKS = 3
"""The fewest with which secure aggregation hides anything."""
LR = 0.1
FEW = 8
"""Examples a client in the runs whose sum is attacked."""
CLIP, SIGMA = 1.0, 1.0

SHARED = (
    "--run.rounds=1",
    "--run.threads=1",
    "--run.device=cpu",
    "--run.timeout=60",
    "--data.name=mnist-mini",
    "--data.placement=home",
    "--data.partition.name=overlapping",
    f"--data.partition.num_clients={RANKS}",
    "--client.local_epochs=1",
    "--client.batch_size=0",
    "--client.optimizer.name=sgd",
    f"--client.optimizer.lr={LR}",
    "--client.execution.name=sequential",
    "--evaluate.every=0",
    "--checkpoint.every=0",
    "--telemetry.tensorboard=false",
    "--telemetry.progress=off",
)
"""One round of one local step on a client a rank: what federated SGD sends."""

MASKED = "--privacy.secure_aggregation.enabled=true"
NOISED = ("--privacy.level=example", f"--privacy.clip={CLIP}", f"--privacy.noise_multiplier={SIGMA}")


@dataclass(frozen=True)
class Scenario:
    """A run by the keys of `fedddp.train`; every client owns ``examples`` digits."""

    name: str
    examples: int
    keys: tuple[str, ...] = ()

    def words(self, seed: int, folder: str, model: str) -> list[str]:
        """The command line of the run, without the program's name."""
        own = (f"--run.name={self.name}", f"--run.dir={folder}", f"--run.seed={seed}", f"--model.name={model}")
        return [*SHARED, *own, f"--data.partition.size={self.examples}", *self.keys]


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("plain", 1),
        Scenario("masked", 1, (MASKED,)),
        Scenario("noised", 1, NOISED),
        Scenario("sum", FEW, (MASKED,)),
        Scenario("noised-sum", FEW, (MASKED, *NOISED)),
    )
}
