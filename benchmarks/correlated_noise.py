"""Expected error of sums over rounds under correlated noise, against the best that matrices of the same kind reach.

    python -m benchmarks.correlated_noise [--rounds 100] [--separation 10]

In units of sigma clip: the root mean square over all rounds of the standard deviation of the sum up to a round, and its
maximum. "optimised" is the banded matrix with columns of norm 1 and the smallest root mean square, entries free and not
Toeplitz, by L-BFGS from `Banded`: what "(Amplified) banded matrix factorization" takes.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedddp.privacy import Mechanism
from fedddp.privacy.mechanisms import Banded, Tree


def sums_of(mechanism: Mechanism, rounds: int) -> Tensor:
    """The standard deviation of the noise in the sum up to each round, [T]."""
    basis = iter(torch.eye(2 * rounds, dtype=torch.float64))  # a tree draws fewer than two vectors a round
    noise = mechanism.noise(lambda: next(basis))
    return torch.stack([next(noise) for _ in range(rounds)]).cumsum(0).norm(dim=1)


def optimised(bands: int, rounds: int) -> Tensor:
    """The same for the optimised matrix with so many bands."""
    band = torch.ones(rounds, rounds, dtype=torch.float64).tril().triu(1 - bands)
    start = torch.tensor(Banded(bands).coefficients, dtype=torch.float64)
    lags = (torch.arange(rounds)[:, None] - torch.arange(rounds)).clamp(0, bands - 1)
    entries = (start[lags] * band).requires_grad_()
    sums = torch.ones(rounds, rounds, dtype=torch.float64).tril()

    def error() -> Tensor:  # A C^-1, the sums' noise by z
        c = entries * band
        c = c / c.norm(dim=0)
        return torch.linalg.solve_triangular(c, sums, upper=False, left=False)

    def step() -> float:
        solver.zero_grad()
        loss = error().square().sum()
        loss.backward()
        return float(loss.detach())

    solver = torch.optim.LBFGS([entries], max_iter=500, history_size=50, line_search_fn="strong_wolfe")
    solver.step(step)
    return error().detach().norm(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--separation", type=int, default=10)
    args = parser.parse_args()
    table = Table("mechanism", "RMS", "maximum", "optimised: RMS", "maximum")
    kinds: list[tuple[str, Mechanism]] = [("tree", Tree(args.separation))]
    kinds += [(f"banded_mf, bands={b}", Banded(b)) for b in (1, 2, 4, 8, 16, 32) if b < args.separation]
    kinds += [(f"banded_mf, bands={args.separation}", Banded(args.separation))]
    for name, mechanism in kinds:
        found = [sums_of(mechanism, args.rounds)]
        if isinstance(mechanism, Banded):
            found += [optimised(mechanism.bands, args.rounds)]
        cells = [f"{x:.3f}" for sums in found for x in (float(sums.square().mean().sqrt()), float(sums.max()))]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
