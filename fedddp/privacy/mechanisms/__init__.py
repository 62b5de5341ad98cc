"""Correlate the noise of a run's releases, so that sums over rounds get less of it at the same epsilon.

A lower triangular strategy C with columns of norm 1 turns independent z_t ~ N(0, (sigma clip)^2 I) into the noise
C^-1 z of the releases. All releases x + C^-1 z together are post-processing of C x + z: Gaussian noise on a quantity
that one client changes by sens(C) clip, also where x_t depends on earlier releases (Denisov et al. 2022, "Improved
differential privacy for SGD via optimal private linear operators on adaptive streams", Theorem 2.1).

If a client takes part in k releases, any two of them b or more apart, and no row of C has entries of two releases that
are b or more apart, its columns have no row in common and sens(C)^2 <= k, whatever its updates (Choquette-Choo et al.
2023, "(Amplified) banded matrix factorization"). Epsilon is that of k compositions of the Gaussian mechanism with noise
multiplier sigma, without an assumption on sampling. Equal sigma is equal epsilon for every mechanism here.

A run that is resumed begins with new keys: its C is block diagonal from there on. The columns of such a C are parts of
columns of the old one, so the bound stays; the noise of before is not cancelled any more, which costs accuracy only.
"""

from .banded import Banded
from .mechanism import Mechanism
from .tree import Tree

MOST_BANDS = 32
"""The number of bands that is chosen for a run keeps no more vectors than this in memory; see `Banded`."""


def _banded(separation: int, bands: int) -> Banded:
    return Banded(bands or min(separation, MOST_BANDS))


def _tree(separation: int, bands: int) -> Tree:
    return Tree(separation)


MECHANISMS = {"gaussian": None, "tree": _tree, "banded_mf": _banded}
"""By ``privacy.mechanism``: from the separation b and ``privacy.bands`` to the mechanism."""

__all__ = ["MECHANISMS", "Banded", "Mechanism", "Tree"]
