"""The configuration of one run with every open choice decided."""

from typing import Literal, Self

from ..algorithms import Algorithm, ContinuedOrder, KeptOptimizer
from ..attacks import Adversary
from ..data import DATASETS, Parts
from ..tasks.metrics import Target
from ..types import Delivery
from .schema import Config


class ResolvedConfig(Config):
    """A configuration in which all that depends on the ranks, the machine and other keys is filled in.

    `fedddp.setup.resolve.resolve` makes it, and ``config.toml`` of a run folder holds it. ``run.name`` and
    ``run.threads`` are set, ``data.partition`` has its number of clients, ``data.placement`` is not "auto",
    ``client.schedule`` extends over the rounds, and ``aggregation.rule`` has its number of Byzantine clients. A noise
    multiplier that follows from ``privacy.target_epsilon`` is filled in once the sizes of the clients are known.
    """

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the same values as a resolved configuration; they were validated before."""
        return cls.model_construct(**dict(config))

    @property
    def num_clients(self) -> int:
        """N, the population."""
        return self.data.partition.num_clients

    @property
    def cohort_size(self) -> int:
        """m, clients drawn per round: ``cohort.size``, or max(C N, 1), and ``cohort.over_selection`` of it more."""
        size = self.cohort.size or max(1, round((self.cohort.fraction or 1.0) * self.num_clients))
        return max(size, min(self.num_clients, round(size * (1 + self.cohort.over_selection))))

    @property
    def separation(self) -> int:
        """b, the least number of rounds from one participation of a client to its next, in cohorts in a fixed order."""
        return self.num_clients // self.cohort_size

    @property
    def placement(self) -> Literal["home", "shared"]:
        """Which examples a rank holds: those of its own clients ("home"), or all of them ("shared")."""
        return "shared" if self.data.placement == "shared" else "home"

    @property
    def divided(self) -> bool:
        """Whether the data were divided by ``fedddp split``, so that a rank can read its own clients' only."""
        return isinstance(DATASETS.get(self.data.name), Parts)

    @property
    def noise_multiplier(self) -> float:
        """Sigma, the noise's standard deviation in units of ``privacy.clip``; 0 without noise."""
        return self.privacy.noise_multiplier or 0.0

    @property
    def trained_by(self) -> Algorithm:
        """The algorithm, with what clients go on with from round to round besides."""
        client, algorithm = self.client, self.algorithm
        if client.optimizer_state == "keep":
            algorithm = KeptOptimizer(algorithm, client.optimizer)
        return ContinuedOrder(algorithm) if client.order == "continue" else algorithm

    @property
    def adversary(self) -> Adversary:
        """The Byzantine clients, drawn from the seed."""
        return Adversary.drawn(self.attack, self.num_clients, self.run.seed)

    @property
    def needs_single_updates(self) -> bool:
        """Whether the aggregation rule or the attack reads each client's update, not only their sum."""
        return not self.aggregation.rule.streams or self.attack.omniscient

    @property
    def target(self) -> Target | None:
        """The metric at which the run stops."""
        return Target.asked(self.evaluate.target_accuracy, self.evaluate.target)

    @property
    def delivery(self) -> Delivery:
        """How uploads reach the mean. A ring of 32 bits rounds, so it is lossy like a compression."""
        ring = self.privacy.secure_aggregation
        return "lossy" if ring.enabled and ring.bits == 32 else self.aggregation.compression.delivery

    @property
    def hides(self) -> str:
        """The privacy setting that hides single clients, as ``key=value``; empty if there is none."""
        if self.privacy.level != "none":
            return f"privacy.level={self.privacy.level}"
        return "privacy.secure_aggregation.enabled=true" if self.privacy.secure_aggregation.enabled else ""
