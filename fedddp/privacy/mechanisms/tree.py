"""Tree aggregation: sums over rounds get the noise of a few nodes of a binary tree instead of every round's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """A binary tree over the releases, begun anew so often that a client is in a tree once.

    Kairouz, McMahan, Song, Thakkar, Thakurta, Xu 2021, "Practical and private (deep) learning without sampling or
    shuffling" (DP-FTRL; restarts: appendix D). A node's sum gets noise of its own when its last leaf is there, and a
    leaf lies in `levels` nodes, by whose root sigma is multiplied. The noise of the sum up to a release is that of the
    complete nodes that make it up, and a release's noise is the difference of two such sums.

    A node's sum is also known from its children: the estimates are combined in proportion to their inverse variances
    from below (Honaker 2015, "Efficient use of differentially private binary trees"). Trees have the largest power of
    two of leaves that fits into ``separation``: their last sum is one node.
    """

    separation: int

    @property
    def levels(self) -> int:
        """The number of nodes of a tree that contain a leaf."""
        return self.separation.bit_length()

    @property
    def largest_std(self) -> float:
        """See `Mechanism`. A release changes the sum by at most its own node and one on each level that it replaces."""
        return float(self.levels)

    def noise(self, draw: Callable[[], Tensor]) -> Iterator[Tensor]:
        """See `Mechanism`. One draw for each node; one vector of float64 is kept for each level."""
        scale = math.sqrt(self.levels)
        while True:
            complete: list[tuple[int, Tensor]] = []  # level and estimate of the nodes that make up the sum
            before: Tensor | float = 0.0
            for _ in range(2 ** (self.levels - 1)):
                level, estimate = 0, draw()
                while complete and complete[-1][0] == level:
                    children = complete.pop()[1] + estimate
                    weight = 2 / (2 - 2.0**-level)  # variance of `children`; of the node's own noise: 1
                    estimate = (children + weight * draw()) / (1 + weight)
                    level += 1
                complete.append((level, estimate))
                now = torch.stack([node for _, node in complete]).sum(0)
                yield (now - before) * scale
                before = now
