"""The model card: what an exported model is, how to use it, how it was trained, and what protects the data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoints.run_folder import read_json, read_lines
from ...checkpoints.saved import sha256
from ...config import flatten
from ...data.labels import listed
from ...data.targets import TARGETS
from ...trained import Trained
from .formats import FORMATS

ROWS = {
    "Data": "data.name",
    "Division": "data.partition.name",
    "Clients": "data.partition.num_clients",
    "Clients per round": "cohort.size",
    "Fraction of clients per round": "cohort.fraction",
    "Task": "task.name",
    "Model": "model.name",
    "Algorithm": "algorithm.name",
    "Local epochs": "client.local_epochs",
    "Local steps": "client.local_steps",
    "Batch size": "client.batch_size",
    "Client optimizer": "client.optimizer.name",
    "Learning rate": "client.optimizer.lr",
    "Seed": "run.seed",
}
"""What the table on training says: keys of the configuration."""
NO_PRIVACY = (
    "None: the run had no level of differential privacy. Nothing bounds what the model reveals about the examples that "
    "it was trained on."
)


def card(trained: Trained, to: str, client: int | None, files: Sequence[Path], folder: Path, checked: str) -> str:
    """Write the model card in Markdown.

    Args:
        trained: the model.
        to: its format.
        client: whose model it is; None: the server's.
        files: what was written, below ``folder``.
        folder: the folder of the card.
        checked: what the writer found.
    """
    keys, format = flatten(dict(trained.table)), FORMATS[to]
    history = [m for m in read_lines(trained.folder / "metrics.jsonl") if "round" in m]
    summary = read_json(trained.folder / "summary.json")
    whose = "The server's model" if client is None else f"The model of client {client}"
    rounds = summary.get("rounds") or (history[-1]["round"] if history else trained.round)
    rows = {name: keys[key] for name, key in ROWS.items() if keys.get(key) is not None}
    if "Local steps" in rows:
        del rows["Local epochs"]
    rows["Parameters"] = f"{sum(p.numel() for p in trained.module.parameters()):,}"
    sums = {str(path.relative_to(folder)): f"`{sha256(path)}`" for path in files}
    use = format.use.replace("MODULE", type(trained.module).__name__)
    parts = [
        f"# {keys.get('run.name') or trained.folder.name}",
        f"{whose} after round {trained.round} of {rounds}, trained by federated learning with fedddp.",
        f"## Use\n\n```python\n{use}\n```\n\n{_inputs(trained, whole=format.whole)}",
        *([f"Checked when it was written: {checked}."] if checked else []),
        f"## Training\n\n{_table(rows)}",
        f"## Metrics\n\n{_metrics(trained.round, history, client)}",
        f"## Privacy\n\n{_privacy(keys, history, summary, client)}",
        f"## SHA-256\n\n{_table(sums)}",
    ]
    return "\n\n".join(parts) + "\n"


def _inputs(trained: Trained, *, whole: bool) -> str:
    """Say what goes in and what comes out."""
    dataset, normalize = trained.dataset, trained.normalizer()
    x, targets = dataset.train.x, TARGETS[dataset.targets]
    kind = str(x.dtype).removeprefix("torch.")
    shape = ", ".join(map(str, ("n", *x.shape[1:])))
    pixels = kind == "uint8"
    what = "pixels from 0 to 255" if pixels else "token ids" if dataset.num_tokens else "numbers as in training"
    if pixels and not whole:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (normalize.mean, normalize.std))
        kind = str(normalize.dtype).removeprefix("torch.")
        what = f"pixels p from 0 to 255 as (p / 255 - mean) / std, mean {mean}, std {std} (per channel, if several)"
    if dataset.alphabet:
        what += f": 0 is padding, i is the character i of {json.dumps(dataset.alphabet)}, counted from 1"
    said = f"Inputs: {kind} [{shape}], {what}; n is any number of examples."
    said += " They are normalised inside." if pixels and whole else ""
    outputs = f"Outputs: {dataset.num_classes} numbers an example"
    outputs += " and position" if dataset.targets == "positions" else ""
    if dataset.targets == "real":
        unit = "in the units of the targets" if whole else f"o; the prediction is o std + mean, {_scale(trained)}"
        return f"{said} {outputs}, {unit}."
    names = f"; the classes in order: {listed(dataset.class_names, 100)}" if dataset.class_names else ""
    return f"{said} {outputs}, scores (logits); targets in training: {targets.words}{names}."


def _scale(trained: Trained) -> str:
    mean, std = trained.dataset.target_mean or (), trained.dataset.target_std or ()
    return f"mean {list(mean)}, std {list(std)}, or 0 and 1 with task.standardize=false"


def _metrics(round: int, history: Sequence[Mapping[str, Any]], client: int | None) -> str:
    line = next((m for m in history if m["round"] == round), {})
    known = {name: f"{value:.6g}" for name, value in line.items() if _measured(name) and value is not None}
    if not known:
        return "This round was not evaluated."
    of = "" if client is None else "Of the server's model and of all clients' models, not of this one.\n\n"
    return of + _table(known)


def _measured(name: str) -> bool:
    return name.startswith(("test_", "personal_", "global_on_clients"))


def _privacy(
    keys: Mapping[str, Any], history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], client: int | None
) -> str:
    last = history[-1] if history else {}
    said = summary.get("privacy") or (
        f"epsilon {last['epsilon']} {last.get('epsilon_terms', '')}" if "epsilon" in last else NO_PRIVACY
    )
    if client is not None and said != NO_PRIVACY:
        said += "\n\nThat is said of the server's model. This client's own model was made from its examples."
    if keys.get("privacy.secure_aggregation.enabled"):
        said += "\n\nSecure aggregation hid the updates of single ranks; it does not bound what the model reveals."
    return said


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
