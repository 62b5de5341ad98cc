"""pfl-research (https://github.com/apple/pfl-research) as a contender: `python benchmarks/contenders/pfl.py WORK`.

pfl as fast as it gets: the cohort divided over torchrun ranks, one all-reduce per round, evaluation spread over the
ranks, clients' batches cut once and kept where they are needed (pfl does not shuffle), no metrics of clients. Its
iteration 0 warms up and is undone: there pfl evaluates on every client's data before and after training, whatever the
frequency is.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # this folder last: this file is called like the package that it measures
os.environ["PFL_PYTORCH_DEVICE"] = (  # or pfl looks for a device once for each tensor of each batch
    json.loads(Path(sys.argv[1], "workload.json").read_text())["device"]
).replace("cuda", f"cuda:{os.environ.get('LOCAL_RANK', 0)}")

import numpy as np
import pfl
import torch
from models import MODELS, loss
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, StringMetricName, Weighted, get_overall_value
from pfl.model.pytorch import PyTorchModel
from protocol import Channel, Workload
from torch import distributed, nn

DEVICE = os.environ["PFL_PYTORCH_DEVICE"]


class Network(nn.Sequential):
    """A model with the two methods that pfl asks for."""

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(self(x), y)

    @torch.inference_mode()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"accuracy": Weighted((self(x).argmax(-1) == y).sum().item(), y.numel())}


class Rounds(TrainingProcessCallback):
    """Ends each of pfl's iterations: evaluates, reports, and waits until another round is asked for."""

    def __init__(self, workload: Workload, channel: Channel) -> None:
        self.workload, self.channel = workload, channel
        self.waiting: Any = distributed.new_group(timeout=timedelta(days=1), backend="gloo")
        test = PyTorchTensorDataset(placed(workload.test()))
        self.evaluation = CentralEvaluationCallback(test, NNEvalHyperParams(workload.eval_batch_size))

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.start = model.get_parameters()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if central_iteration == 0:
            self.evaluation.on_train_begin(model=model)
            model.set_parameters(self.start)
            if distributed.get_rank() == 0:
                self.channel.ready(f"pfl {pfl.__version__}, torch {torch.__version__}")
        else:
            self.evaluate_and_report(aggregate_metrics, model, central_iteration)
        return not self.another(), Metrics()

    def evaluate_and_report(self, aggregate_metrics: Metrics, model: PyTorchModel, iteration: int) -> None:
        trained, accuracy = now(), None
        if self.workload.evaluate:
            _, metrics = self.evaluation.after_central_iteration(aggregate_metrics, model, central_iteration=iteration)
            accuracy = get_overall_value(metrics[StringMetricName("Central val | accuracy")])
        ended = now()
        if distributed.get_rank() == 0:
            self.channel.report(
                train=trained - self.began,
                evaluate=ended - trained,
                total=ended - self.began,
                clients=self.workload.cohort,
                accuracy=accuracy,
            )

    def another(self) -> bool:
        """Rank 0 asks; the others sleep until it knows."""
        asked = torch.tensor([distributed.get_rank() == 0 and self.channel.next()])
        self.began = time.perf_counter()
        distributed.broadcast(asked, 0, group=self.waiting)
        return bool(asked)


def placed(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(t.to(DEVICE) for t in tensors)


def now() -> float:
    """The time when all that was asked of the device is done."""
    if DEVICE != "cpu":
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def cohorts(workload: Workload) -> Iterator[int]:
    """Clients, drawn alike on every rank: each `cohort` of them in a row are distinct."""
    for round in count():
        yield from workload.drawn(round)


def federated(workload: Workload) -> FederatedDataset:
    """The clients. pfl balances unequal ones over the ranks in a process of its own; equal ones need none."""
    users = [PyTorchTensorDataset(placed(tensors), user_id=str(k)) for k, tensors in enumerate(workload.clients())]
    sizes = {k: len(user) for k, user in enumerate(users)}
    balance = sizes if len(set(sizes.values())) > 1 else None
    return FederatedDataset(users.__getitem__, cohorts(workload).__next__, balance)


def train(workload: Workload) -> None:
    """What each rank does."""
    channel = Channel()
    np.random.seed(workload.seed)  # pfl wants the same seed on every rank
    torch.manual_seed(workload.seed)
    network = Network(*MODELS[workload.model]())
    local = functools.partial(torch.optim.SGD, fused=True)
    model = PyTorchModel(network, local, torch.optim.SGD(network.parameters(), lr=1.0))
    clients = federated(workload)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=workload.rounds + 1,
            evaluation_frequency=workload.rounds + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(clients, clients, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=workload.epochs, local_learning_rate=workload.lr, local_batch_size=workload.batch_size
        ),
        NNEvalHyperParams(workload.batch_size),
        [Rounds(workload, channel)],
        send_metrics_to_platform=False,
    )
    distributed.destroy_process_group()


def main() -> None:
    workload = Workload.read(sys.argv[1])
    if "RANK" in os.environ:
        train(workload)
    else:  # again as `ranks` processes, in this one's place
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workload.ranks}"]
        os.execv(sys.executable, [sys.executable, *launch, __file__, *sys.argv[1:]])


if __name__ == "__main__":
    main()
