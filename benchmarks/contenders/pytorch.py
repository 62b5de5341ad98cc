"""The plain PyTorch program for the same training. `python benchmarks/contenders/pytorch.py WORK`.

What an engineer writes without a federation in mind: the cohort is divided evenly over the ranks, each of which runs a
loop of zero_grad, forward, backward, step over batches that are normalised before the clock starts, one all_reduce that
averages the weights, and a plain evaluation of the test set, split over the ranks. `train` is the
slowest rank's time in the loop alone; summing and averaging the weights count in `total`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

import torch
from models import MODELS, loss
from protocol import Channel, Workload
from torch import Tensor, distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters

Batches = list[tuple[Tensor, Tensor]]


class Loop:
    """One rank's part of every round; the resulting model is the same on every rank."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload, self.device = workload, device
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        torch.manual_seed(workload.seed)
        self.module = MODELS[workload.model]().to(device)
        self.clients = workload.clients()
        x, y = workload.test()
        self.x, self.y = x[self.rank :: self.ranks].to(device), y[self.rank :: self.ranks].to(device)
        self.num_tested = len(y)

    def work(self, round: int) -> list[Batches]:
        """The batches of this rank's clients in a round, shuffled, where they are needed."""
        cohort = self.workload.drawn(round)
        return [self.batches(*self.clients[k]) for k in cohort[self.rank :: self.ranks]]

    def batches(self, x: Tensor, y: Tensor) -> Batches:
        orders = [torch.randperm(len(y)) for _ in range(self.workload.epochs)]
        rows = [i for order in orders for i in order.split(self.workload.batch_size)]
        return [(x[i].to(self.device), y[i].to(self.device)) for i in rows]

    def train(self, work: list[Batches]) -> float:
        """Every client from the same weights, then their mean by examples. The seconds in the loop, averaging apart."""
        start = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        total = torch.zeros(sum(p.numel() for p in self.module.parameters()) + 1, device=self.device)
        seconds = 0.0
        self.module.train()
        for batches in work:
            began = self.now()
            self.module.load_state_dict(start)
            optimizer = torch.optim.SGD(self.module.parameters(), lr=self.workload.lr)
            for x, y in batches:
                optimizer.zero_grad()
                loss(self.module(x), y).backward()
                optimizer.step()
            seconds += self.now() - began
            n = sum(len(y) for _, y in batches)
            total[:-1].add_(parameters_to_vector(self.module.parameters()).detach(), alpha=n)
            total[-1] += n
        distributed.all_reduce(total)
        vector_to_parameters(total[:-1] / total[-1], self.module.parameters())
        return seconds

    @torch.inference_mode()
    def evaluate(self) -> float:
        """The accuracy on the whole test set."""
        self.module.eval()
        right = torch.zeros(1, device=self.device)
        size = self.workload.eval_batch_size
        for x, y in zip(self.x.split(size), self.y.split(size), strict=True):
            right += (self.module(x).argmax(dim=1) == y).sum()
        distributed.all_reduce(right)
        return right.item() / self.num_tested

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def serve(workload: Workload, device: torch.device) -> None:
    """What each rank does: rank 0 asks whether there is another round, and the others sleep until it knows."""
    channel = Channel()
    loop, round = Loop(workload, device), 0
    if loop.rank == 0:
        channel.ready(f"torch {torch.__version__}")
    while another(loop, channel):
        work = loop.work(round)
        distributed.barrier()
        began = loop.now()
        seconds = torch.tensor([loop.train(work)])
        trained = loop.now()
        accuracy = loop.evaluate() if workload.evaluate else None
        ended = loop.now()
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        round += 1
        if loop.rank == 0:
            channel.report(
                train=seconds.item(),
                evaluate=ended - trained,
                total=ended - began,
                clients=workload.cohort,
                accuracy=accuracy,
            )


def another(loop: Loop, channel: Channel) -> bool:
    asked = torch.tensor([loop.rank == 0 and channel.next()])
    distributed.broadcast(asked, 0)
    return bool(asked)


def main() -> None:
    workload = Workload.read(sys.argv[1])
    if "RANK" not in os.environ:  # again as `ranks` processes, in this one's place
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workload.ranks}"]
        os.execv(sys.executable, [sys.executable, *launch, __file__, *sys.argv[1:]])
    device = torch.device(json.loads((workload.folder / "workload.json").read_text())["device"])
    gpus = torch.cuda.device_count()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and gpus >= workload.ranks else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    serve(workload, device)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
