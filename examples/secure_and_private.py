"""Secure aggregation with differential privacy of whole clients, on three ranks, and what they sent.

    torchrun --nproc_per_node=3 -m examples.secure_and_private

Each rank masks its sum of clipped updates, to which it adds its part of the noise: ranks and eavesdroppers see uniform
integers, and the sum that all decode is differentially private.
"""

import json
import sys

import fedddp

KEYS = {
    "data.partition.num_clients": 60,
    "cohort.fraction": 0.5,  # a Poisson sample of half of the clients
    "model.name": "logistic",
    "client.optimizer.lr": 0.1,
    "privacy.guard": True,  # refuse to send anything else
    "privacy.secure_aggregation.enabled": True,
    "privacy.level": "client",
    "privacy.clip": 0.5,
    "privacy.target_epsilon": 8.0,  # the noise is found for it
    "privacy.delta": 1e-3,
    "run.threads": 1,
}


def main(rounds: int) -> None:
    """Train, and print what the run folder says about it."""
    result = fedddp.run(KEYS, name="example-secure-and-private", rounds=rounds)
    if result.folder is None:
        return  # rank 0 writes the run folder
    last = result.history[-1]
    print(f"accuracy {last['test_accuracy']:.3f} at epsilon {last['epsilon']:.2f} ({last['epsilon_terms']})")
    print("single clients' losses that left a rank:", last["train_loss"])
    print("what this rank sent in the last round:")
    for entry in json.loads((result.folder / "ledger.jsonl").read_text().splitlines()[-1])["sent"]:
        print(f"  {entry['purpose']:20} {entry['dtype']:8} {entry['shape']}")


if __name__ == "__main__":
    main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 5)
