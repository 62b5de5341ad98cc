"""The main loop: Algorithm 1 of McMahan et al. 2017 over torch.distributed, one screen."""

from dataclasses import dataclass, replace
from typing import Self

from .aggregation import Pipeline
from .algorithms import Algorithm
from .checkpoints.checkpoint import Checkpoints
from .clients import ClientStore, Trainer
from .comm import Comm, Purpose
from .evaluation.clients import Evaluation
from .flat import FlatSpec
from .privacy import Budget
from .sampling import Sampler, Schedule
from .tasks import Task
from .telemetry import Stopwatch, Telemetry
from .types import ServerState


@dataclass(frozen=True)
class Federation:
    """Everything a run consists of, the same on every rank but for the data and ``comm``."""

    algorithm: Algorithm
    trainer: Trainer
    sampler: Sampler
    schedule: Schedule
    pipeline: Pipeline
    store: ClientStore
    evaluation: Evaluation
    telemetry: Telemetry
    checkpoints: Checkpoints
    budget: Budget
    comm: Comm
    rounds: int

    def is_last(self, t: int) -> bool:
        """Whether round ``t`` (0-based) ends the run: the last one asked for, or the last that the budget allows."""
        return t + 1 == self.rounds or not self.budget.allows(self.sampler.cohort(t + 1))

    def until(self, rounds: int) -> Self:
        """The same federation with another number of rounds."""
        return replace(self, rounds=rounds)


def initialise(task: Task, algorithm: Algorithm, comm: Comm, spec: FlatSpec, seed: int) -> ServerState:
    """w_0 on the server, and the same w_0 on every client."""
    w = task.initial_params(seed).to(comm.device, spec.dtype)  # 1 initialise
    w = comm.broadcast(w, Purpose.DISTRIBUTE)  # 2 distribute; later rounds compute the same w on every rank
    return algorithm.init_server(w, spec)


def federate(f: Federation, server: ServerState) -> ServerState:
    """Train from ``server`` until all rounds are done, the privacy budget is spent or the target is reached."""
    for t in range(server.round, f.rounds):
        clock = Stopwatch(f.comm.synced_at)
        cohort = f.sampler.cohort(t)  # S_t: a random set of m clients
        if not f.budget.allows(cohort):
            break
        cohort = f.sampler.chosen(cohort, server.w)  # those of them that take part
        inbox = f.pipeline.open(cohort, server)
        f.comm.enter(f"train in round {t + 1}")
        mine = f.schedule.mine(cohort, f.evaluation.server.load)
        new = f.algorithm.init_client(server)  # what a client knows that takes part for the first time
        for ids in f.telemetry.following(inbox.blocks(mine, f.trainer.width), len(mine)):
            with inbox.tolerate(ids):
                local, state = f.trainer.on(ids, t), f.store.get(ids, new)
                update, state, result = f.algorithm.client_update(server, state, local)  # 3 train locally
                accepted = inbox.add(ids, update, result)  # 4 upload: accumulate
                f.store.put(ids, state, accepted)
        clock.arrived()
        f.budget.spend(cohort)  # before anything is released
        mean, report = inbox.mean()  # 5 aggregate: one all_reduce
        if mean.count == 0:
            f.store.discard()  # what the server does not know of has not happened: c stays the mean of the c_k
        server = server.unchanged() if mean.count == 0 else f.algorithm.server_update(server, mean, cohort)  # 6 w_{t+1}
        clock.aggregated(report)

        last = f.is_last(t)
        score, clients = f.evaluation.after_round(server, f.store, last)
        clock.evaluated()
        f.telemetry.round(server, report, mean, score, clock, f.comm, f.budget.guarantee, clients)
        del inbox, mean  # as large as the model
        last |= f.evaluation.server.reached(score) or f.telemetry.hopeless(cohort.population)
        f.store.commit()
        f.checkpoints.after_round(server, f.store, score, last=last, spent=f.budget.state())
        if last:
            break
    return server
