"""Combinations of settings that would carry a privacy figure without a guarantee, each with its reason and remedy.

Plain values in, lines "section.key=value: reason; remedy" out, none if all is well. What cannot be configured needs no
refusal: example level always draws Poisson batches, client level always Poisson cohorts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn


def refusals(
    level: str,
    *,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    delta: float,
    units: int,
    weighting: str | None = None,
    mixing: Sequence[str] = (),
    clip: float | None = None,
    adaptive_clip: bool = False,
    uncounted: str | None = None,
    shared: bool = False,
) -> list[str]:
    """The reasons against a configuration.

    ``level``: none, example or client. ``units``: how many examples, or clients, there are in all. ``weighting``: the
    algorithm's, if it has one. ``clip``: if it is not the default. ``mixing``: names of the model's layers that
    `mixing_layers` found. ``uncounted``: the key by which clients do other work than the epochs that are accounted for,
    if there is one. ``shared``: whether an example may have several owners.
    """
    if level == "none":
        return list(_unprotected(noise_multiplier, target_epsilon, clip, adaptive_clip))
    found = []
    if noise_multiplier is None and target_epsilon is None:
        found.append(
            f"privacy.level={level}: there is no noise without privacy.noise_multiplier or privacy.target_epsilon; "
            "give one of them"
        )
    if noise_multiplier == 0 and target_epsilon is not None:
        found.append(
            f"privacy.target_epsilon={target_epsilon:g}: with privacy.noise_multiplier=0 epsilon is infinite after one "
            "round; leave out the noise multiplier, and it is found for the target"
        )
    if delta * units >= 1:
        found.append(
            f"privacy.delta={delta:g}: publishing one of {units} {level}s at random would pass for private; use less "
            f"than 1/{units} = {1 / units:.1g}"
        )
    if level == "client" and weighting == "examples":
        found.append(
            "algorithm.weighting=examples: a client's weight would tell how many examples it has, and a large one "
            "would exceed what the noise covers; use uniform"
        )
    if level == "example" and mixing:
        found.append(
            f"model.name: {', '.join(mixing)} lets an example change the gradients of others, so that clipping bounds "
            "nothing; use GroupNorm or LayerNorm"
        )
    if level == "example" and uncounted:
        found.append(
            f"{uncounted}: the accountant counts the steps of client.local_epochs for every client; leave it off"
        )
    if level == "example" and shared:
        found.append(
            "data.partition.num_clients: clients share examples, so that one costs what all its owners spend, and "
            "epsilon would be that of one of them; use fewer clients, or a partition that gives every example one owner"
        )
    if level == "example" and adaptive_clip:
        found.append(
            "privacy.adaptive_clip.enabled=true: clips clients' updates; use privacy.level=client, or a fixed clip"
        )
    return found


def _unprotected(
    noise_multiplier: float | None, target_epsilon: float | None, clip: float | None, adaptive_clip: bool
) -> Iterator[str]:
    """Keys that promise something where nothing is done."""
    idle = {
        "noise_multiplier": noise_multiplier,
        "target_epsilon": target_epsilon,
        "clip": clip,
        "adaptive_clip.enabled": "true" if adaptive_clip else None,
    }
    for key, value in idle.items():
        if value is not None:
            yield f"privacy.{key}={value}: has no effect with privacy.level=none; use privacy.level=example or client"


def mixing_layers(module: nn.Module) -> list[str]:
    """The layers of ``module`` in which examples of a batch meet, or that keep statistics of them: "name (class)"."""

    def mixes(part: nn.Module) -> bool:
        keeps = isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
        return keeps or isinstance(part, nn.modules.batchnorm._BatchNorm)

    return [f"{name} ({type(part).__name__})" for name, part in module.named_modules() if mixes(part)]
