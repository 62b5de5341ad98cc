"""An algorithm of your own, from its paper: FedExP, compared with FedAvg on the same clients.

python -m examples.own_algorithm
fedddp train --algorithm.name=examples.own_algorithm:FedExP --data.partition.num_clients=20
"""

import sys
from dataclasses import dataclass

import fedddp
from fedddp.algorithms import FedAvg
from fedddp.types import Update


@dataclass(frozen=True)
class FedExP(FedAvg):
    """Jhunjhunwala, Wang, Joshi 2023, "FedExP: speeding up federated averaging via extrapolation", Algorithm 1.

    w_{t+1} = w_t + eta_g mean(delta),   eta_g = max(1, mean(|delta_k|^2) / (2 (|mean(delta)|^2 + eps)))

    The server moves further the more the clients' deltas disagree. A client uploads, besides delta_k = w_k - w_t, one
    number: |delta_k|^2 = the vector ``square``.
    """

    eps: float = 1e-3

    def vectors(self, spec):
        return {"delta": spec.dim, "square": 1}

    def client_update(self, server, client, local):
        result = local.train(server.w)
        square = result.delta.square().sum(dim=1, keepdim=True)  # [K, 1]
        return Update({"delta": result.delta, "square": square}, self.weight(local)), client, result

    def server_update(self, server, mean, cohort):
        delta, square = mean.vectors["delta"], mean.vectors["square"]  # [D], [1]
        eta = (square / (2 * (delta.square().sum() + self.eps))).clamp(min=1)
        return self.moved(server, eta * delta)


def main(rounds: int) -> dict[str, list[float]]:
    """Train both; return each one's test accuracies by round."""
    keys = {"data.partition.name": "dirichlet", "data.partition.num_clients": 20, "data.partition.alpha": 0.3}
    keys |= {"model.name": "mlp", "model.hidden": 64, "client.optimizer.lr": 0.02, "run.threads": 1}
    curves = {}
    for algorithm in (FedAvg(), FedExP()):
        name = type(algorithm).__name__
        result = fedddp.run(keys, name=f"example-{name.lower()}", rounds=rounds, algorithm=algorithm)
        curves[name] = [line["test_accuracy"] for line in result.history]
    for name, curve in curves.items():
        print(f"{name:8}", " ".join(f"{accuracy:.3f}" for accuracy in curve))
    return curves


if __name__ == "__main__":
    main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 10)
