"""Federated averaging from Python: a model of your own, non-IID clients, and the trained model at work.

python -m examples.fedavg                                   # one rank
torchrun --nproc_per_node=2 -m examples.fedavg              # the same clients on two ranks
"""

import sys

import torch
from torch import nn

import fedddp


class Net(nn.Sequential):
    """A multilayer perceptron for 28 x 28 images."""

    def __init__(self, width: int = 64):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def main(rounds: int) -> float:
    """Train for ``rounds`` rounds; return the accuracy of the final model on the test digits."""
    keys = {
        "data.partition.name": "dirichlet",  # 20 clients, each with its own label distribution
        "data.partition.num_clients": 20,
        "data.partition.alpha": 1.0,
        "cohort.size": 10,  # 10 of them per round
        "client.local_epochs": 2,
        "client.batch_size": 20,
        "client.optimizer.lr": 0.05,
        "run.threads": 1,  # so small a model does not gain from more
    }
    result = fedddp.run(keys, name="example-fedavg", rounds=rounds, model=Net)
    for line in result.history:
        print(
            f"round {line['round']}: accuracy {line['test_accuracy']:.4f}, {line['bytes_sent']} bytes sent by this rank"
        )
    if result.folder:  # on rank 0, which writes the run folder
        model, normalize = fedddp.load(result.folder), fedddp.normalizer(result.folder)
        with torch.no_grad():
            blank = normalize(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
            print("the model takes a blank image for a", int(model(blank).argmax()))
    return result.summary["final_test_accuracy"]


if __name__ == "__main__":
    main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 8)
