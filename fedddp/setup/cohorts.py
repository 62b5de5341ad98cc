"""Whether the way in which clients are drawn goes with the rest of a run, and what it asks of the ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..clients import Trainer
from ..comm import Comm, Purpose
from ..config import Config, UsageError, chosen
from ..data import Work
from ..sampling import Losses, Punctual, Sampler, Uniform, home_rank
from ..types import Cohort
from .checks import cohort_size


def drawn(config: Config) -> Config:
    """``config`` with plain means where clients are drawn by their sizes. Raises UsageError for what does not fit."""
    sampler, privacy = config.cohort.sampler, config.privacy
    if config.client.drop_stragglers and privacy.level == "client":
        raise UsageError(
            "client.drop_stragglers=true: privacy.level=client divides by the number of clients it expects, so that "
            "dropped ones would shrink the mean; use drop_stragglers=false"
        )
    if sampler == Uniform():
        return config
    key = chosen(config, "cohort.sampler")
    if privacy.level != "none":
        raise UsageError(
            f"{key}: privacy.level={privacy.level} accounts for clients that are drawn alike; use sampler.name=uniform"
        )
    if sampler.asks_losses and privacy.secure_aggregation.enabled:
        raise UsageError(
            f"{key}: clients report their losses one by one, which secure aggregation hides; use sampler.name=uniform "
            "or size, or privacy.secure_aggregation.enabled=false"
        )
    clusters = getattr(_innermost(config), "clusters", 1)
    if sampler.asks_losses and clusters > 1:
        raise UsageError(
            f"{key}: compares clients' losses of one model, and there are {clusters} clusters; use "
            "sampler.name=uniform or size"
        )
    if sampler.plain_means:
        config = config.model_copy(update={"algorithm": _plain(config.algorithm, key if sampler.by_size else "")})
    return config


def check_cohort(config: Config, sizes: Tensor) -> None:
    """Raises UsageError where clients of ``sizes`` [N] cannot be drawn as the configuration says."""
    try:
        config.cohort.sampler.sampler(sizes, cohort_size(config), config.run.seed, lambda cohort, w: sizes)
    except ValueError as error:
        raise UsageError(f"{chosen(config, 'cohort.sampler')}: {error}") from None


def check_clients_mean(config: Config) -> None:
    """Raises UsageError where the mean of the clients' models may not be revealed, or is no model."""
    if not config.evaluate.clients_mean:
        return
    privacy = config.privacy
    if privacy.level != "none" or privacy.secure_aggregation.enabled:
        hiding = f"privacy.level={privacy.level}" if privacy.level != "none" else "privacy.secure_aggregation"
        raise UsageError(
            f"evaluate.clients_mean=true: sums clients' models as they are, beside what {hiding} covers; use "
            "clients_mean=false"
        )
    if getattr(_innermost(config), "clusters", 1) > 1:
        raise UsageError(
            "evaluate.clients_mean=true: clients of several clusters have no common model; use clients_mean=false"
        )


def mean_weights(config: Config, sizes: Tensor) -> Tensor:
    """What the clients of ``sizes`` [N] weigh in the mean of all their models: as they count in the loss, [N]."""
    uniform = getattr(_innermost(config), "weighting", None) == "uniform" and not config.cohort.sampler.by_size
    return torch.ones_like(sizes) if uniform else sizes


def sampler_of(config: Config, sampler: Sampler) -> Sampler:
    """``sampler`` without the stragglers, if these are dropped."""
    client, seed = config.client, config.run.seed
    work = Work(stragglers=client.stragglers)
    return Punctual(sampler, lambda k, t: work.late(k, t, seed)) if client.drop_stragglers else sampler


def losses_of(trainer: Trainer, comm: Comm) -> Losses:
    """The clients' losses, each evaluated on its home rank, by one all_reduce of 8 bytes a client."""

    def losses(cohort: Cohort, w: Tensor) -> Tensor:
        comm.enter(f"choose clients for round {cohort.round + 1}")
        slots = torch.zeros(len(cohort.ids), dtype=torch.float64)
        for slot, k in enumerate(cohort.ids):
            if home_rank(k, comm.world_size) == comm.rank:
                slots[slot] = trainer.on((k,), cohort.round).loss(w)[0]
        return comm.all_reduce(slots, Purpose.COHORT)

    return losses


def _innermost(config: Config) -> Any:
    """The algorithm, without wrappers such as `Personal`."""
    algorithm: Any = config.algorithm
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return algorithm


def _plain(algorithm: Any, by_size: str) -> Any:
    """``algorithm``, or the one inside it, with weighting=uniform for auto; no other for clients drawn ``by_size``."""
    if hasattr(algorithm, "inner"):
        return dataclasses.replace(algorithm, inner=_plain(algorithm.inner, by_size))
    weighting = getattr(algorithm, "weighting", None)
    if by_size and weighting == "examples":
        raise UsageError(
            f"algorithm.weighting='examples': {by_size} draws clients by their examples, which would count twice; use "
            "weighting=uniform"
        )
    return dataclasses.replace(algorithm, weighting="uniform") if weighting == "auto" else algorithm
