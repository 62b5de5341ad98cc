"""Load the trained model of a run folder for use elsewhere.

predict = fedddp.predictor("runs/NAME")
predict(images)                                         # images: uint8 [n, C, H, W]
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .api import configured
from .checkpoints.export import BEST, LAST, best_of, exported, named
from .checkpoints.saved import Saved, candidates, changed, newest, of_round
from .clients import ClientStore
from .config import Config, UsageError, merge, read_toml
from .data import Dataset, Normalizer
from .errors import OWN_CODE, first_line
from .flat import FlatSpec
from .models.weights import Weights
from .registry.choice import user_path
from .setup.dry_run import task_of
from .tasks import Task
from .types import ServerState

Inputs = dict[str, Any]

log = logging.getLogger("fedddp")


class Predictor(nn.Module):
    """A trained model, from inputs as the dataset holds them to predictions.

    It normalises pixels (uint8 [n, C, H, W]) as in training, and gives the numbers of a regression in the units of its
    targets. Other tasks: the model's outputs, such as a score for each class.
    """

    def __init__(self, module: nn.Module, normalize: Normalizer, task: Task) -> None:
        super().__init__()
        self.module, self._normalize, self._task = module, normalize, task

    def forward(self, x: Tensor) -> Tensor:
        return self._task.predictions(self.module(self._normalize(x)))


@dataclass(frozen=True)
class Trained:
    """A model of a run, on the CPU and in evaluation mode.

    Attributes:
        folder: the run folder.
        round: the round that it is of.
        module: the model.
        task: what it learned.
        dataset: a blank example in place of the run's data, of the same form.
        config: the run's configuration.
        table: the same as ``config.toml`` has it.
    """

    folder: Path
    round: int
    module: nn.Module
    task: Task
    dataset: Dataset
    config: Config
    table: Mapping[str, Any]

    def predictor(self) -> Predictor:
        """Return the model with what comes before and after it."""
        return Predictor(self.module, self.normalizer(), self.task).eval()

    def normalizer(self) -> Normalizer:
        """Return the function from inputs as the dataset has them to those of the model."""
        return self.dataset.normalizer(_dtype(self.table))


def load(
    run: str | Path, *, best: bool = False, round: int | None = None, client: int | None = None, model: Any = None
) -> nn.Module:
    """Load the server's model of a run, or a client's own, as a module on the CPU and in evaluation mode.

    It takes normalised inputs, see `normalizer`, and gives what it was trained to give: of a regression standardised
    numbers, see `predictor`. For algorithms with a model per client or cluster it is the one that the server evaluates;
    for a conditional GAN, both networks (``generator``, ``discriminator``).

    Args:
        run: the run folder.
        best: take the round with the best test accuracy (without accuracies, the lowest test loss), not the last.
        round: take the checkpoint of this round.
        client: take what this client would deploy, of an algorithm with personal models; by default after the newest
            checkpoint.
        model: the model of a run that was given an object, which config.toml cannot describe: a module class, a
            function that makes a module, or a module, of which a copy is used.

    Raises:
        UsageError: the folder has no such model, or the module that its configuration describes does not fit.
    """
    return found(run, best=best, round=round, client=client, model=model).module


def predictor(run: str | Path, **which: Any) -> Predictor:
    """Load a run's model as a function from inputs as the dataset has them to predictions, see `Predictor`.

    Args:
        run: the run folder.
        which: ``best``, ``round``, ``client`` and ``model``, as `load` takes them.

    Raises:
        UsageError: the folder has no such model.
    """
    return found(run, **which).predictor()


def normalizer(run: str | Path) -> Normalizer:
    """Return the function from inputs as the dataset has them (pixels: uint8 [n, C, H, W]) to those of the model.

    Raises:
        UsageError: the folder has no model.
    """
    folder = user_path(run)
    dataset = Dataset.blank(_found(folder, False, None)[3])
    return dataset.normalizer(_dtype(read_toml(folder / "config.toml")))


def found(
    run: str | Path,
    *,
    best: bool = False,
    round: int | None = None,
    client: int | None = None,
    model: Any = None,
    layer: Mapping[str, Any] | None = None,
) -> Trained:
    """Load a model of a run with what is known of it; ``layer``: keys that replace the run's. See `load`."""
    folder = user_path(run)
    if best and (round is not None or client is not None):
        other = f"round={round}" if round is not None else f"client={client}"
        raise UsageError(f"best=True, {other}: both say which model; give one of them")
    path, at, saved, inputs = _found(folder, best, round, files=client is None)
    table = merge(read_toml(folder / "config.toml"), layer or {})
    trained = _untrained(folder, table, inputs, model, at, frozen=saved is not None, personal=client is not None)
    module = trained.module
    if saved is None:
        try:
            module = Weights.read(path, str(path)).into(module)
        except UsageError as error:
            raise UsageError(f"{error}{_hint(model)}") from None
        return replace(trained, module=module.eval())
    spec = FlatSpec.of(module, whole=True)
    if unlike := saved.unlike(spec):
        raise UsageError(f"{path}: is not of the configured model: {unlike}{_hint(model)}")
    w = saved.server()[0] if client is None else _personal(trained, saved, spec, client)
    module.load_state_dict(named(spec, module)(w))
    return replace(trained, module=module.eval())


def _personal(trained: Trained, saved: Saved, spec: FlatSpec, client: int) -> Tensor:
    """Return what a client would deploy after a checkpoint, [D]. Raises UsageError where that is the server's model."""
    w, extra = saved.server()
    server, algorithm = ServerState(w, spec, extra, saved.round), trained.config.algorithm
    population = trained.table.get("data", {}).get("partition", {}).get("num_clients", 0)
    if not 0 <= client < population:
        raise UsageError(f"client={client}: the run has {population} clients, counted from 0")
    store = ClientStore()
    store.load_state_dict(saved.client(client), lambda k: k == client)
    own = algorithm.personal_params(server, store.latest((client,), algorithm.init_client(server)))
    if own is server.w:
        name = trained.table.get("algorithm", {}).get("name")
        raise UsageError(f"client={client}: algorithm.name={name!r} has one model for all clients; leave client out")
    if not store.touched:
        log.warning("client %d took part in no round so far; its model is where every client begins", client)
    return own.reshape(-1)


def _found(
    folder: Path, best: bool, round: int | None, *, files: bool = True
) -> tuple[Path, int, Saved | None, Inputs]:
    """Return where the model is, an exported file or a checkpoint, its round, and the description of its inputs.

    ``files``: whether an exported file will do; it has the server's model alone.
    """
    there = [file for name in (LAST, BEST) if files and (file := exported(folder, name))]
    saved = newest(folder) if round is None else of_round(folder, round)
    if best:
        chosen = best_of(candidates(folder, 2**63))
        wanted = chosen.round if chosen else -1
        saved = of_round(folder, wanted)
    else:
        wanted = round if round is not None else max([saved.round if saved else 0, *(f.round for f, _ in there)])
    for file, inputs in there:
        if file.round == wanted:
            if not changed(folder, file):
                return file.path, wanted, None, inputs
            found = f"{file.path}: its SHA-256 is not the one in summary.json: it was changed since the run ended"
            if saved is None or saved.round != wanted:
                raise UsageError(f"{found}; copy it again, or load a checkpoint (round=...)", code="weights-changed")
            log.warning("%s; the checkpoint of round %d is loaded", found, wanted)
    if saved is None:
        which = f"checkpoint of round {round}" if round is not None else "evaluated model" if best else "model"
        which = which if files else "checkpoint, which has the clients' models"
        others = {c.round for c in (*candidates(folder, 2**63), *(file for file, _ in there))} - {round}
        if round is not None and others:
            raise UsageError(f"{folder}: has no {which}; there is round {', '.join(map(str, sorted(others)))}")
        raise UsageError(
            f"{folder}: has no {which}; give a run folder of fedddp.train whose run ended, or has a checkpoint "
            "(checkpoint.every, checkpoint.keep)",
            code="no-evaluated-model" if best else "no-model",
        )
    if saved.inputs is None:
        raise UsageError(f"{saved.folder}: was written by an earlier version, which did not keep what inputs it takes")
    return saved.folder, saved.round, saved, saved.inputs


def _untrained(
    folder: Path, table: Mapping[str, Any], inputs: Inputs, model: Any, round: int, *, frozen: bool, personal: bool
) -> Trained:
    """Build what the run's configuration describes, before the weights of ``round``. Raises UsageError.

    Args:
        folder, table, inputs: the run, its configuration, the description of its inputs.
        model: replaces the section model.
        round: the round that is loaded.
        frozen: whether the model has the weights that training started from, for those that it did not change.
        personal: whether the algorithm is needed.
    """
    adapted = table.get("model", {}).get("lora", {}).get("rank")  # some algorithms add to such layers
    sections = ("model", "task", *(["algorithm"] if personal or adapted else []))
    kept = {section: table[section] for section in sections if section in table}
    kept["client"] = {"precision": table.get("client", {}).get("precision", "float32")}
    try:
        config = configured(kept, **({} if model is None else {"model": model}))
        dataset = Dataset.blank(inputs)
        with torch.enable_grad():  # the loss is tried, also where the caller needs no gradient
            task = task_of(config, dataset, start=frozen)
        module = task.model(table.get("run", {}).get("seed", 0))
    except OWN_CODE as error:
        raise UsageError(f"{folder}: its model cannot be rebuilt ({first_line(error)}){_hint(model)}") from error
    return Trained(folder, round, module, task, dataset, config, table)


def _dtype(table: Mapping[str, Any]) -> torch.dtype:
    return torch.float64 if table.get("client", {}).get("precision") == "float64" else torch.float32


def _hint(model: Any) -> str:
    return "" if model is not None else "; if the run was given a module, pass it: fedddp.load(..., model=Net)"
