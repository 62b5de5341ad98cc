"""Connect the ranks and assemble the federation of a prepared run, at its beginning or at a checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Algorithm, LastModels
from ..checkpoints.checkpoint import Checkpoints
from ..checkpoints.export import Exports, named
from ..checkpoints.own_clients import OwnClients
from ..checkpoints.run_folder import SPENT, RunFolder
from ..checkpoints.saved import candidates
from ..checkpoints.spend_file import SpendFile
from ..clients import ClientStore, Trainer
from ..comm import Comm, CommError, Purpose, interrupt
from ..comm.guard import Guard
from ..comm.world import rank_path
from ..config import ResolvedConfig, build, flatten, to_dict, to_toml
from ..evaluation.clients import ClientEvaluator, ClientsMean, Evaluation
from ..evaluation.contribution import Contributions, measuring
from ..evaluation.server import Evaluator
from ..federation import Federation, initialise
from ..privacy import Budget
from ..sampling import Schedule, home_rank
from ..telemetry import (
    Beside,
    ClientsFile,
    Divergence,
    Files,
    InBackground,
    Metrics,
    Plan,
    SideWork,
    Sink,
    Telemetry,
    progress,
    rewind,
)
from ..telemetry.commits import Commits
from ..telemetry.environment import environment
from ..telemetry.loggers import Run, open_loggers
from ..types import ServerState
from .about import about
from .account import Account, opened
from .banner import elsewhere, whereabouts
from .cohorts import losses, participants
from .experiment import Experiment, keep_freed_memory, start_messages
from .levels import Plain, level_for
from .load import LOCAL
from .prepared import Earlier, Prepared
from .resume import resuming

log = logging.getLogger("fedddp")


def connect(p: Prepared, sinks: Sequence[Sink] = (), comm: Comm | None = None) -> Experiment:
    """Join the other ranks and assemble the federation, at the round that rank 0's checkpoint has reached.

    Args:
        p: the prepared run.
        sinks: receive the record of every round, on rank 0; see `fedddp.telemetry.Sink`.
        comm: a connection to the other ranks; by default one is made, and ended by `Experiment.close`.

    Raises:
        CommError: a rank did not come, or its configuration, data or model differ. The run folder's status says so, if
            there is a folder by then.
    """
    keep_freed_memory()
    folder = p.folder if p.folder and p.folder.resumed else None
    run, owns_comm, account = p.config.run, comm is None, None

    def end(error: BaseException) -> None:
        if account:
            account.release()
        if folder:
            folder.ended(error)
        if comm is not None:
            comm.guard = None
            if owns_comm:
                comm.release()

    with interrupt.ending(end), interrupt.explaining(CommError):
        keeps = bool(p.config.privacy.account.dir)
        account = opened(p) if keeps and owns_comm else None  # before the process group starts; a given one has started
        comm = comm or Comm.connect(p.place, p.device, backend=run.backend, timeout=run.timeout)
        comm.check_signature(p.signature)
        account = opened(p) if keeps and account is None else account
        folder = p.folder.claimed(p.place.launch) if p.folder else None
        return _assembled(p, sinks, comm, folder, account, owns_comm=owns_comm)


def _assembled(
    p: Prepared,
    sinks: Sequence[Sink],
    comm: Comm,
    folder: RunFolder | None,
    account: Account | None,
    *,
    owns_comm: bool,
) -> Experiment:
    config = p.config
    if comm.remark and comm.rank == 0:
        log.warning(comm.remark)
    goes_on = comm.coordinated and p.place.attempt > 0
    for line in start_messages(config) if comm.rank == 0 and not goes_on else ():
        log.info("%s", line)
    comm.guard = _guard(p)
    protection = level_for(config.privacy)(p, comm)
    comm.keep_discreet(protection.hides_cohort)
    seed, algorithm = config.run.seed, config.adversary.around(protection.algorithm, p.spec)
    contributions = _contributions(p, algorithm, comm)
    algorithm = contributions or algorithm
    if config.evaluate.clients_mean:
        algorithm = LastModels(algorithm)
    start = initialise(p.task, algorithm, comm, p.spec, seed)
    protection.check_start(start.w)
    store = ClientStore(comm.device, beside=protection.memory)
    stateful = bool(algorithm.init_client(start) or config.aggregation.compression.init_client(protection.columns))
    telemetry = _telemetry(p, folder, sinks, timed=not protection.hides_cohort)
    done, finished, learned, norm = _where_it_stands(p, comm, telemetry)
    run_folder = _run_folder(config, comm, folder)
    if p.place.prints_for_machine:
        log.info("%s", whereabouts(run_folder, writes=folder is not None))
    checkpoints = _checkpoints(p, comm, folder, run_folder, stateful=stateful, done=done)
    checkpoints.restore(store, lambda k: home_rank(k, p.home[1]) == p.home[0])
    telemetry.learned_before = learned
    trainer = _trainer(p, comm)
    federation = Federation(
        algorithm=algorithm,
        trainer=trainer,
        sampler=participants(
            protection.sampler(losses(p.home, trainer, comm)),
            p.training if config.client.drop_stragglers else None,
            p.place,
            p.home,
        ),
        schedule=_schedule(p, bound=p.data.placement == "home" or stateful, least=protection.least_trained),
        pipeline=protection.pipeline(),
        store=store,
        evaluation=replace(_evaluation(p, algorithm, comm), contributions=contributions),
        telemetry=telemetry,
        checkpoints=checkpoints,
        budget=_budget(p, protection, comm, folder),
        comm=comm,
        rounds=done if finished else config.run.rounds,
    )
    federation.pipeline.limit.largest = norm
    if folder and done:
        spent = not federation.budget.allows(federation.sampler.cohort(done))
        log.info("%s", resuming(folder.path, config, done, reached=finished, spent=spent))
    if account:
        comm.enter("plan its privacy account")  # what the others are told if this rank refuses
        account.plan(federation.budget, range(done, federation.rounds), run_folder.name)
        federation.budget.account = account
    if federation.budget.guarantee:
        comm.barrier(Purpose.PRIVACY)  # nobody counts a release that another rank's account refuses
    server = _restored(start, p.saved, comm, done)
    checkpoints.start(server)
    return Experiment(federation, server, folder, p, owns_comm)


def _run_folder(config: ResolvedConfig, comm: Comm, folder: RunFolder | None) -> Path:
    """Return the run folder: rank 0 says its name, but every rank's own configuration says where it lies."""
    name = comm.broadcast_text(folder.path.absolute().name if folder else "", Purpose.RUN_FOLDER)
    if config.run.resume not in ("never", "auto"):
        return Path(config.run.resume).absolute()
    if name in ("", "..") or Path(name).name != name:
        raise CommError(f"rank 0 names the run folder {name!r}, which is not the name of a folder in run.dir")
    return Path(config.run.dir).absolute() / name


def _checkpoints(
    p: Prepared, comm: Comm, folder: RunFolder | None, run_folder: Path, *, stateful: bool, done: int
) -> Checkpoints:
    keys = p.config.checkpoint
    return Checkpoints(
        run_folder,
        to_dict(p.config),
        comm,
        every=keys.every,
        keep=keys.keep,
        stateful=stateful,
        done=done,
        exports=_exports(p, folder, done),
        inputs=_inputs(p),
        spec=p.spec,
        own=_own_clients(p.config, run_folder, comm),
    )


def _own_clients(config: ResolvedConfig, run_folder: Path, comm: Comm) -> OwnClients | None:
    root = config.checkpoint.clients_dir
    return OwnClients(rank_path(root, comm.rank).absolute(), run_folder, comm.rank) if root else None


def _evaluation(p: Prepared, algorithm: Algorithm, comm: Comm) -> Evaluation:
    keys, seed = p.config.evaluate, p.config.run.seed
    server = Evaluator(
        p.task,
        p.test,
        p.data.normalize,
        comm,
        where=keys.where,
        every=keys.every,
        target=p.config.target,
        seed=seed,
        probes=p.config.attack.probes(p.test, p.inputs["num_classes"]),
    )
    clients = ClientEvaluator(p.task, p.held, algorithm, comm, every=keys.personal_every, seed=seed)
    mean = ClientsMean(_mean_weights(p.config, p.data.sizes), comm) if keys.clients_mean else None
    return Evaluation(server, clients, mean)


def _contributions(p: Prepared, algorithm: Algorithm, comm: Comm) -> Contributions | None:
    keys = p.config.evaluate
    if keys.contribution == "off":
        return None
    how = {"how": keys.contribution, "every": keys.every or p.config.run.rounds, "seed": p.config.run.seed}
    return measuring(algorithm, p.task, p.test, p.data.normalize, comm, **how)


def _exports(p: Prepared, folder: RunFolder | None, done: int) -> Exports | None:
    """Return the writer of exported models, on rank 0."""
    if folder is None:
        return None
    by_name = named(p.spec, p.task.model(p.config.run.seed))
    return Exports(folder.path.absolute(), by_name, _inputs(p), candidates(folder.path, done))


def _inputs(p: Prepared) -> dict[str, Any]:
    """Return the description of the model's inputs that building it again and normalising new inputs need."""
    return p.inputs


def _guard(p: Prepared) -> Guard | None:
    keys, masks = p.config.privacy, p.config.privacy.secure_aggregation
    if not keys.guard:
        return None
    return Guard.of(
        secure=masks.enabled,
        ring=f"int{masks.bits}",
        evaluated=2 + sum(part.size for part in p.task.sums),
        clients=p.data.num_clients,
        losses=p.config.cohort.sampler.asks_losses,
        mean_of=p.spec.dim if p.config.evaluate.clients_mean else 0,
    )


def _trainer(p: Prepared, comm: Comm) -> Trainer:
    trainer, why = p.trainer
    if comm.rank == 0:
        log.info("clients train %s", why)
    return trainer


def _budget(p: Prepared, protection: Plain, comm: Comm, folder: RunFolder | None) -> Budget:
    """Return the privacy budget that is left, the same on every rank; rank 0 knows what was spent."""
    budget = protection.budget(SpendFile(folder.path / SPENT) if folder else None)
    spent = budget.recovered(p.saved.budget() if p.saved else {})
    budget.load({name: comm.broadcast(tensor, Purpose.PRIVACY) for name, tensor in spent.items()})
    if budget.guarantee and comm.rank == 0:
        log.info("epsilon is %s", budget.guarantee.terms)
    return budget


def _mean_weights(config: ResolvedConfig, sizes: Tensor) -> Tensor:
    """Return the weight of each client of ``sizes`` [N] in the mean of all their models, as in the loss, [N]."""
    uniform = config.algorithm.traits.weighting == "uniform"
    return torch.ones_like(sizes) if uniform and not config.cohort.sampler.by_size else sizes


def _schedule(p: Prepared, *, bound: bool, least: int) -> Schedule:
    return Schedule(p.data.sizes, _work(p), *p.home, bound, least)


def _work(p: Prepared) -> Callable[[Tensor], Tensor]:
    """Return the examples, padding included, that clients of given sizes train on in a round."""
    full = p.training.work
    return lambda sizes: full.most(sizes) * (full.batch_size or sizes)


def _where_it_stands(p: Prepared, comm: Comm, telemetry: Telemetry) -> tuple[int, bool, bool, float]:
    """Return from rank 0: the rounds done, if the target was reached, if anything was learned, the largest norm."""
    target, saved, last = p.config.target, p.saved, telemetry.history[-1:]
    finished = any(target is not None and target.met(m.get(target.key)) for m in last)
    learned = any(m.get("participants") != 0 for m in telemetry.history)  # None: not reported
    norm = max((m.get("update_norm") or 0.0 for m in telemetry.history), default=0.0)
    here = torch.tensor([saved.round if saved else 0, finished, learned, norm], dtype=torch.float64)
    done, finished, learned, norm = comm.broadcast(here, Purpose.RESUME).tolist()
    return int(done), bool(finished), bool(learned), norm


def _restored(start: ServerState, saved: Earlier | None, comm: Comm, done: int) -> ServerState:
    """Return w_0, or the state of the checkpoint that rank 0 found, sent to all ranks."""
    if not done:
        return start
    w, extra = saved.server() if saved else (start.w, start.extra)
    w = comm.broadcast(w.to(start.w).clone(), Purpose.RESUME)
    extra = {  # w_0, which earlier versions did not save, is that of the seed
        name: comm.broadcast(extra.get(name, like).to(like).clone(), Purpose.RESUME)
        for name, like in start.extra.items()
    }
    return ServerState(w, start.spec, extra, done)


def _telemetry(p: Prepared, folder: RunFolder | None, sinks: Sequence[Sink], *, timed: bool) -> Telemetry:
    if folder is None:
        return Telemetry(elsewhere(p, planned(p)), timed=timed)
    done, rounds, keys = p.saved.round if p.saved else 0, p.config.run.rounds, p.config.telemetry
    folder.write("config.toml", to_toml(p.config))
    history = rewind(folder, done)
    folder.status("running", round=done, rounds=rounds)
    side = SideWork()
    with side("environment.txt"):
        folder.write("environment.txt", environment(p.device, p.place.world_size, p.config.run.threads))
    plan = planned(p, done)
    bars = progress(keys.progress, plan)
    shown = [Beside("progress", sink, side) for sink in (*bars, Divergence())]
    files = [
        Files(folder, rounds),
        *_clients_file(p, side),
        *([Commits(folder, p.place.attempt, p.place.numbers, p.data.sizes)] if p.place.coordinated else []),
        *shown,
        *_tensorboard(p, folder, history, side, plan, timed=timed),
        *_loggers(p, folder),
        *sinks,
    ]

    def during(trained: int, of: int) -> None:
        with side("progress"):
            for bar in bars:
                bar.clients(trained, of)

    return Telemetry(files, history, p.config.target, timed=timed, during=during)


def planned(p: Prepared, done: int = 0) -> Plan:
    """Return what is known of the rounds of ``p`` that follow round ``done``."""
    keys, lr = p.config.evaluate, getattr(p.training.optimizer, "lr", None)
    work = float(_work(p)(p.data.sizes).double().mean()) * p.config.cohort_size
    alone = p.place.world_size if keys.where == "rank0" else 1
    return Plan(
        rounds=p.config.run.rounds,
        done=done,
        every=(keys.every, *([keys.personal_every] if keys.personal_every and p.held else [])),
        evaluation=len(p.test) * alone / 3 / max(1.0, work),  # a training step costs three forward passes
        lr=lambda t: None if lr is None else lr * p.training.factor(t - 1),
    )


def _loggers(p: Prepared, folder: RunFolder) -> list[Sink]:
    keys = {key: value for key, value in flatten(to_dict(p.config)).items() if key not in LOCAL}
    return open_loggers(p.output.loggers, Run(folder.path.name, folder.path, keys)) if p.output else []


def _clients_file(p: Prepared, side: SideWork) -> list[Sink]:
    return [Beside("clients.csv", ClientsFile(p.output.folder, p.output.owners), side)] if p.output else []


def _tensorboard(
    p: Prepared, folder: RunFolder, history: Sequence[Metrics], side: SideWork, plan: Plan, *, timed: bool
) -> list[Sink]:
    keys, path = p.config, folder.path / "tensorboard"
    if not keys.telemetry.tensorboard or p.output is None:
        return []
    with side("TensorBoard"):
        from ..telemetry.tensorboard import TensorBoard  # seconds of imports that the other ranks do without

        pages = TensorBoard(
            path,
            plan.done,
            to_toml(keys),
            flatten(to_dict(keys)),
            p.output.counts,
            side,
            words=about(p),
            changed=to_toml(build(to_dict(keys)), changed=True),
            measured=p.task.measured,
            rate=plan.lr,
            target=keys.target,
            history=history,
            timed=timed,
        )
        return [InBackground(Beside("TensorBoard", pages, side))]
    return []  # it could not be begun
