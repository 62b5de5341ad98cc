"""Refuse a model that this machine has no memory for, before anything of its size is made."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..comm.world import memory
from ..errors import OWN_CODE, UsageError
from ..rng import global_seed

COPIES = 4
"""Of a model, on one rank that trains one client at a time: the round's, the client's, its gradient, and the update."""


def check_size(front: str, section: Any, shape: tuple[int, ...], num_outputs: int) -> None:
    """Raise UsageError if the model of ``section`` does not fit into memory; it is laid out without any.

    A model that cannot be laid out so, or whose weights are read from a file, is not measured.

    Args:
        front: the key and value that the error names.
        section: the model's section.
        shape: of one input.
        num_outputs: the number of outputs.
    """
    if getattr(section, "reads", False):
        return
    try:
        with torch.device("meta"), global_seed(0, "size"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are given where the model is made for good
            module: nn.Module = section.build(shape, num_outputs)
        tensors = [t for t in (*module.parameters(), *module.buffers()) if not is_lazy(t)]
    except OWN_CODE:  # which is told where the model is made for good
        return
    needed, there = COPIES * sum(t.numel() * t.element_size() for t in tensors), memory()
    if needed > there:
        raise UsageError(
            f"{front}: has {sum(t.numel() for t in tensors):,} parameters, which take at least {needed / 1e9:,.0f} GB "
            f"in training; this machine has {there / 1e9:,.0f} GB: make the model smaller"
        )
