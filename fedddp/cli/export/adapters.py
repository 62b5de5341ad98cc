"""Adapters as peft's folder, and models of transformers with their adapters merged into the layers."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ...errors import UsageError
from ...registry.choice import user_path
from ...trained import Trained

PREFIX = "base_model.model."
"""Of the names in peft's files."""
ADAPTER = ".default."
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*")


def peft_folder(trained: Trained, path: Path) -> str:
    """Write a folder that ``PeftModel.from_pretrained`` loads onto the model that training started from.

    What trained beside the adapters is in it, too (``modules_to_save``). Raises UsageError for a model without
    adapters, or one to whose layers the server added.
    """
    module, name = trained.module, trained.table.get("model", {}).get("name")
    found: Any = getattr(module, "peft_config", None)
    if found is None:
        raise UsageError(f"--to=peft: model.name={name!r} has no adapters (model.lora.rank); use --to=safetensors")
    if any(".lora_residual." in key for key in module.state_dict()):
        algorithm = trained.table.get("algorithm", {}).get("name")
        raise UsageError(
            f"--to=peft: algorithm.name={algorithm!r} adds matrices to layers with adapters, for which a folder of "
            "peft has no place; use --to=hf, which merges them"
        )
    layers = {key: t.detach().cpu().contiguous() for key, t in module.state_dict().items() if ".lora_" in key}
    beside = {key: p.detach().cpu() for key, p in module.named_parameters() if p.requires_grad and key not in layers}
    tensors = {PREFIX + key.replace(ADAPTER, "."): t.clone() for key, t in (layers | beside).items()}
    config = replace(
        found["default"],
        base_model_name_or_path=_folder(trained) or name,
        inference_mode=True,
        modules_to_save=sorted({key.rpartition(".")[0] for key in beside}) or None,
    )
    config.save_pretrained(path)
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return ""


def merged(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` without adapters, whose layers compute what they did with them."""
    module = copy.deepcopy(module)
    for name, part in list(module.named_modules()):
        if "default" not in getattr(part, "lora_A", ()):
            continue
        adapted: Any = part
        added: Any = getattr(part, "lora_residual", None)
        base = adapted.get_base_layer().to(adapted.lora_A["default"].weight.dtype)  # it may be held in another
        adapted.merge()
        if added is not None:
            matrix = added.weight.T if adapted.fan_in_fan_out else added.weight
            base.weight.data += adapted.scaling["default"] * matrix
        module.set_submodule(name, base)
    module.__dict__.pop("peft_config", None)
    return module


def copy_tokenizer(trained: Trained, path: Path) -> None:
    """Copy the tokenizer's files of the model's own folder, if it has one, to ``path``."""
    if folder := _folder(trained):
        for pattern in TOKENIZER:
            for file in user_path(folder).glob(pattern):
                shutil.copy(file, path)


def _folder(trained: Trained) -> str | None:
    """The folder of the model of transformers that training started from."""
    folder = getattr(trained.config.model, "path", "")
    return folder if folder and user_path(folder).is_dir() else None
