"""Assemble a run without differential privacy, with or without secure aggregation; the base of the other levels."""

from __future__ import annotations

from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...aggregation import (
    ClientTally,
    CoordinateShards,
    DriftTally,
    ExactSum,
    FastSum,
    NormLimit,
    Pipeline,
    Reduce,
    RingSum,
    SumTally,
    Tally,
    in_the_clear,
)
from ...aggregation.compression import Columns, Setting
from ...algorithms import LAST, AdapterError, Algorithm, ClientMomentum, LastMean, adapted
from ...attacks import NoAttack
from ...clients import ClientStore, LocalTrainingSpec, Trainer, choose
from ...comm import Comm, CommError
from ...config import ResolvedConfig
from ...data import ClientData, Examples
from ...federation import Federation
from ...privacy import Budget, Canaries, NoBudget, SpendLog
from ...sampling import Losses, Sampler
from ...secure import HelloError, Roster, SecureExchange, identity_of
from ...tasks import Task
from ...types import ServerState
from ..noise import heaviest
from ..prepared import Prepared


class Unmasked:
    """Sums without masks, as large as those with: only the protocol's own messages are missing."""

    def __init__(self, comm: Comm) -> None:
        self.sum_ = in_the_clear(comm)

    def begin(self, server: ServerState) -> None:
        """See `SecureExchange.begin`."""


class Plain:
    """No differential privacy: updates are sent as they are, or masked so that only their sum can be read.

    Attributes:
        unit: what the guarantee hides, "example" or "client"; empty without a guarantee.
        clips_gradients: whether each example's gradient is clipped, in as many steps as the accountant counts.
        clips_updates: whether each client's update is clipped and noise is added to the sum.
        hides_cohort: whether who is drawn is secret: neither the run folder nor a message to other ranks then has a
            time, or a count, that depends on it.
    """

    unit: ClassVar[str] = ""
    clips_gradients: ClassVar[bool] = False
    clips_updates: ClassVar[bool] = False
    hides_cohort: ClassVar[bool] = False

    def __init__(self, p: Prepared, comm: Comm, exchange: Unmasked | None = None) -> None:
        """``exchange`` replaces secure aggregation's, which needs all ranks: for an estimate of what is sent."""
        self._p, self._comm, self._keys, self._given = p, comm, p.config.privacy, exchange
        self._masked = self._keys.secure_aggregation.enabled

    @cached_property
    def algorithm(self) -> Algorithm:
        """The algorithm of the configuration with what rule and level put around it."""
        configured, spec = self._configured, self._p.spec
        averages = configured.vectors(spec).get("delta") == spec.dim and not configured.traits.moves_base
        shown = adapted(spec) and averages and self._whole and not self._masked
        return AdapterError(configured) if shown else configured

    def check_start(self, w: Tensor) -> None:
        """Raise CommError under secure aggregation, unless the model received from rank 0 is w_0.

        Ranks make w_0 themselves, to what differs in the last bits between processors; the rounds then compare hashes.
        """
        if self._masked:
            own = self._p.task.initial_params(self._p.config.run.seed).to(w)
            if not torch.allclose(w, own, rtol=1e-5, atol=1e-6):
                raise CommError(
                    f"rank {self._comm.rank} received another initial model than it makes from run.seed: it was "
                    "altered on its way, or rank 0 runs another program; find out which before you start again"
                )

    @property
    def _configured(self) -> Algorithm:
        algorithm, rule = self._p.config.trained_by, self._p.config.aggregation.rule
        if rule.client_momentum:
            algorithm = ClientMomentum(algorithm, rule.client_momentum)
        return LastMean(algorithm) if rule.remembers else algorithm

    @cached_property
    def memory(self) -> ClientStore:
        """The store of what compression has left out of each client's updates; empty without."""
        return ClientStore()

    @property
    def columns(self) -> Columns:
        """The columns of an upload that are compressed."""
        algorithm, spec = self.algorithm, self._p.spec
        return self._p.config.aggregation.compression.columns(algorithm.vectors(spec), algorithm.uploaded(spec))

    def sampler(self, losses: Losses) -> Sampler:
        """Return the sampler of cohorts; ``losses`` computes the clients' losses."""
        config = self._p.config
        return config.cohort.sampler.sampler(self._p.data.sizes, config.cohort_size, config.run.seed, losses)

    @property
    def least_trained(self) -> int:
        """How many clients this rank trains in a round at least; those outside the cohort are not in the sum."""
        return 0

    def budget(self, spend_file: SpendLog | None) -> Budget:
        """Return the privacy budget; ``spend_file`` records what is spent, on rank 0."""
        return NoBudget()

    def planted(self, f: Federation, canaries: Canaries, most: int) -> Federation:
        """Return ``f`` with up to ``most`` more ``canaries`` in place of what clients upload or learn, and an observer.

        Of a level that claims nothing, ``f`` itself.
        """
        return f

    @staticmethod
    def planned(config: ResolvedConfig, rounds: range) -> Tensor | int:
        """Return how often ``rounds`` (0-based) release something about each unit that the budget counts."""
        return len(rounds)

    @staticmethod
    def largest_cohort(config: ResolvedConfig) -> int:
        """Return the largest number of clients that a round can have."""
        return config.cohort_size

    @classmethod
    def trainer(
        cls, config: ResolvedConfig, task: Task, data: ClientData, examples: Examples, spec: LocalTrainingSpec
    ) -> tuple[Trainer, str]:
        """Return how a rank trains its clients, and the reason in words; tried on ``examples``. Raises ValueError."""
        execution = config.client.execution
        most = cls.largest_cohort(config)
        return choose(task, data, examples, spec, name=execution.name, width=execution.width, at_most=most)

    def pipeline(self) -> Pipeline:
        """Return the aggregation of a round."""
        tally = SumTally if self._masked else DriftTally if self._whole else ClientTally
        return self._pipeline(self._reduce(), tally)

    @property
    def _whole(self) -> bool:
        """Whether uploads reach the mean as they are."""
        return self._p.config.delivery == "whole" and not self._p.config.needs_single_updates

    def _pipeline(self, reduce: Reduce, tally: type[Tally], **more: Any) -> Pipeline:
        layout, sizes = self.algorithm.vectors(self._p.spec), self._p.data.sizes
        if self._p.config.aggregation.rule.remembers:
            assert isinstance(reduce, CoordinateShards)
            more["perturb"] = lambda server: reduce.recall(server.extra[LAST])
        if self._masked:
            more["begin"] = self._exchange.begin
        more |= {"limit": self._limit, "deadline": self._p.config.cohort.deadline or inf}
        return Pipeline(layout, reduce, sizes, self._comm, tally=tally, **more)

    @property
    def _limit(self) -> NormLimit:
        """How long an update may be. Relative to others where norms are told and no attack is to be shown."""
        config = self._p.config
        comparable = self._whole and not self._masked and not config.algorithm.traits.reads_losses
        relative = config.aggregation.max_norm == "auto" and comparable and config.attack == NoAttack()
        fixed = config.aggregation.max_norm if isinstance(config.aggregation.max_norm, float) else inf
        return NormLimit(fixed, relative=relative and self.unit == "")

    def _reduce(self) -> Reduce:
        if self._masked:
            weight = heaviest(self._p.data.sizes, self._p.config.cohort_size)
            return self._ring(self._keys.secure_aggregation.bound, weight)
        if self._p.config.needs_single_updates:
            return self._shards()
        p, layout = self._p, self.algorithm.vectors(self._p.spec)
        exact = p.config.aggregation.sum == "exact"

        def new_sum(dtype: torch.dtype) -> Reduce:
            return ExactSum(p.device) if exact else FastSum(dtype, p.device)

        spec = self.algorithm.uploaded(p.spec)
        setting = Setting(layout, spec, p.config.run.seed, self._comm.world_size, self.memory, new_sum)
        return p.config.aggregation.compression.sum(setting)

    def _shards(self) -> CoordinateShards:
        p, config = self._p, self._p.config
        return CoordinateShards(
            config.aggregation.rule,
            p.spec.dtype,
            p.device,
            self._comm.world_size,
            seed=config.run.seed,
            tamper=config.adversary.tamper,
        )

    def _ring(self, bound: float, weight: float, **noise: Any) -> RingSum:
        exchange = self._exchange.sum_ if self._masked else in_the_clear(self._comm)
        bits = self._keys.secure_aggregation.bits
        return RingSum(exchange, self._p.device, bits=bits, bound=bound, total_weight=weight, **noise)

    @cached_property
    def _exchange(self) -> SecureExchange | Unmasked:
        """The exchange of secure aggregation. Raises CommError if the parties do not fit together."""
        if self._given is not None:
            return self._given
        keys = self._keys.secure_aggregation
        roster = Roster.load(Path(keys.roster)) if keys.roster else None
        identity = identity_of(keys.key, self._comm.rank)
        least = 0 if self.clips_updates else keys.min_clients  # where noise hides a client, it also hides the number
        configuration = repr(sorted(self._p.signature.items())).encode()
        try:
            return SecureExchange(self._comm, identity, roster, configuration, min_clients=least)
        except HelloError as error:
            raise CommError(f"secure aggregation does not start: {error}") from None
