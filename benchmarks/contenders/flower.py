"""Flower (https://flower.ai) as a contender: `python benchmarks/contenders/flower.py WORK`.

Its simulation engine: `ranks` Ray actors, FedAvg in the server. To be as fast as it gets, an actor loads the data and
builds the model once, actors are as nice as the server, the server looks for replies 50 times a second instead of 10,
and its evaluation has the cores of all actors. There are as many SuperNodes as clients in a cohort, each standing for
whichever client the server has drawn: the usual one for each client of the population costs Flower time in proportion
to SuperNodes times messages. A round that is thrown away warms up the actors.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from itertools import count

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)

import flwr
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from models import MODELS, loss
from protocol import Channel, Workload
from torch import nn

client = ClientApp()
Tensors = tuple[torch.Tensor, torch.Tensor]


@functools.cache
def actor(folder: str) -> tuple[Workload, list[Tensors], nn.Module]:
    """What a Ray actor keeps from client to client."""
    workload = Workload.read(folder)
    torch.set_num_threads(workload.threads)
    return workload, workload.clients(), MODELS[workload.model]()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One client's local SGD, on ready-made batches."""
    workload, clients, model = actor(str(message.content["config"]["workload"]))
    x, y = clients[int(message.content["config"]["client"])]
    batches = list(zip(x.split(workload.batch_size), y.split(workload.batch_size), strict=True))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr, fused=True)
    for _ in range(workload.epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()
    reply = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(reply), reply_to=message)


class Drawn(FedAvg):
    """FedAvg whose messages say which client a SuperNode stands for."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=workload.cohort)  # waits until all are there
        self.workload, self.rounds = workload, count()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        clients = self.workload.drawn(next(self.rounds))
        to_all = super().configure_train(server_round, arrays, config, grid)
        return [self.message(arrays, k, m.metadata.dst_node_id) for k, m in zip(clients, to_all, strict=True)]

    def message(self, arrays: ArrayRecord, client: int, node: int) -> Message:
        config = ConfigRecord({"workload": str(self.workload.folder), "client": client})
        return Message(RecordDict({"arrays": arrays, "config": config}), node, MessageType.TRAIN)


class Server:
    """The server: a strategy of one round, started again whenever another round is asked for."""

    def __init__(self, workload: Workload, channel: Channel) -> None:
        self.workload, self.channel = workload, channel
        self.test = [tensors.split(workload.eval_batch_size) for tensors in workload.test()]
        self.model = MODELS[workload.model]()
        self.evaluation = 0.0

    def evaluate(self, round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Accuracy on the test set. Flower asks before a strategy's first round too."""
        if round == 0 or not self.workload.evaluate:
            return None
        began = time.perf_counter()
        self.model.load_state_dict(arrays.to_torch_state_dict())
        with torch.inference_mode():
            right = sum((self.model(x).argmax(1) == y).sum().item() for x, y in zip(*self.test, strict=True))
        self.evaluation = time.perf_counter() - began
        return MetricRecord({"accuracy": right / sum(len(y) for y in self.test[1])})

    def main(self, grid: Grid, context: Context) -> None:
        """Flower's server thread."""
        torch.set_num_threads(self.workload.ranks * self.workload.threads)
        grid.pull_interval = 0.02
        one = functools.partial(Drawn(self.workload).start, grid, num_rounds=1, evaluate_fn=self.evaluate)
        arrays = ArrayRecord(self.model.state_dict())
        one(arrays)
        self.channel.ready(f"flwr {flwr.__version__}, torch {torch.__version__}")
        while self.channel.next():
            began = time.perf_counter()
            result = one(arrays)
            arrays, total = result.arrays, time.perf_counter() - began
            metrics = result.evaluate_metrics_serverapp.get(1)
            self.channel.report(
                train=total - self.evaluation,
                evaluate=self.evaluation,
                total=total,
                clients=self.workload.cohort,
                accuracy=float(metrics["accuracy"]) if metrics else None,
            )


def simulate(folder: str) -> None:
    """Everything, in this process and `ranks` Ray actors."""
    channel, workload = Channel(), Workload.read(os.path.abspath(folder))
    torch.manual_seed(workload.seed)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    server = ServerApp()
    server.main()(Server(workload, channel).main)
    run_simulation(
        server,
        client,
        workload.cohort,
        backend_config={
            "init_args": {"num_cpus": workload.ranks * workload.threads},
            "client_resources": {"num_cpus": workload.threads, "num_gpus": 0},
        },
    )


if __name__ == "__main__":
    import flower  # by its name, so that actors import the functions rather than unpickle them with every client

    flower.simulate(sys.argv[1])
