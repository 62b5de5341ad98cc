"""The formats of ``fedddp export``: a writer each, and how the file is used."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.durable import write_tensors
from ...data import Dataset
from ...errors import OWN_CODE, UsageError, first_line
from ...registry.optional import imported
from ...trained import Trained
from .adapters import copy_tokenizer, merged, peft_folder

AGREES = 1e-4
"""Largest difference of a graph's outputs from the module's that counts as rounding, relative to the largest output."""
ONE_FILE = 2**30
"""Bytes of parameters up to which an ONNX file holds them; a file of more than 2 GB cannot be read."""


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        file: the name of what is written, a file or a folder.
        write: writes it, and returns what was checked, for the model card.
        use: Python code that reads the file and calls the model; MODULE stands for the module's class.
        whole: whether it holds a program that takes inputs as the dataset has them and gives predictions, rather than
            the weights of a module that takes normalised inputs.
    """

    file: str
    write: Callable[[Trained, Path], str]
    use: str
    whole: bool = False


def state_dict(trained: Trained, path: Path) -> str:
    """Write what ``torch.load(path, weights_only=True)`` reads."""
    torch.save(_weights(trained), path)
    return ""


def safetensors(trained: Trained, path: Path) -> str:
    """Write the same without pickle; a run may start from it (``model.weights``)."""
    write_tensors(path, _weights(trained), {"format": "pt"})
    return ""


def exported_program(trained: Trained, path: Path) -> str:
    """Write a graph of torch.export, for any number of examples."""
    with _explained("exported-program"):
        torch.export.save(_program(trained), path)
    loaded = torch.export.load(path).module()
    return _compared("exported-program", trained, loaded)


def onnx(trained: Trained, path: Path) -> str:
    """Write a graph of ONNX, for any number of examples, and run it once by ONNX Runtime."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        runtime = imported(module, "onnx", "--to=onnx")
    size = sum(t.numel() * t.element_size() for t in trained.module.state_dict().values())
    with _explained("onnx"):
        torch.onnx.export(
            _program(trained),
            f=path,
            input_names=["inputs"],
            output_names=["outputs"],
            external_data=size > ONE_FILE,
            verbose=False,
        )
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = lambda x: torch.from_numpy(session.run(None, {"inputs": x.numpy()})[0])  # noqa: E731
    return _compared("onnx", trained, outputs)


def hugging_face(trained: Trained, path: Path) -> str:
    """Write a folder that ``from_pretrained`` of transformers reads: adapters merged, with the tokenizer."""
    module: Any = merged(trained.module)
    if not hasattr(module, "save_pretrained"):
        name = trained.table.get("model", {}).get("name")
        raise UsageError(
            f"--to=hf: model.name={name!r} is not a model of transformers (model.name=hf:NAME); use --to=safetensors"
        )
    with _explained("hf"):
        module.save_pretrained(path)
        copy_tokenizer(trained, path)
    return ""


LOADED = """\
import torch
{read}
module.load_state_dict(weights)  # the module as it was trained, in evaluation mode"""
FORMATS = {
    "state_dict": Format(
        "model.pt", state_dict, LOADED.format(read='weights = torch.load("model.pt", weights_only=True)')
    ),
    "safetensors": Format(
        "model.safetensors",
        safetensors,
        LOADED.format(read='from safetensors.torch import load_file\nweights = load_file("model.safetensors")'),
    ),
    "onnx": Format(
        "model.onnx",
        onnx,
        'import onnxruntime\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        'outputs = session.run(None, {"inputs": inputs})[0]  # inputs: a numpy array',
        whole=True,
    ),
    "exported-program": Format(
        "model.pt2",
        exported_program,
        'import torch\nprogram = torch.export.load("model.pt2").module()\noutputs = program(inputs)',
        whole=True,
    ),
    "hf": Format("model", hugging_face, 'import transformers\nmodel = transformers.MODULE.from_pretrained("model")'),
    "peft": Format(
        "adapter",
        peft_folder,
        "import peft\n# base: the model that training started from\n"
        'model = peft.PeftModel.from_pretrained(base, "adapter")',
    ),
}
"""The formats by name, as ``--to`` has them."""


def _weights(trained: Trained) -> dict[str, Tensor]:
    """Return the state_dict, each tensor in memory of its own: they may be views of one vector."""
    return {name: tensor.detach().clone() for name, tensor in trained.module.state_dict().items()}


def _program(trained: Trained) -> Any:
    if trained.task.draws:
        raise UsageError("a conditional GAN is two networks that draw noise; use --to=safetensors or --to=state_dict")
    batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        return torch.export.export(trained.predictor(), (_sample(trained.dataset, 2),), dynamic_shapes=batch)


@contextmanager
def _explained(format: str) -> Iterator[None]:
    """Raise whatever an exporter raises as a UsageError, and leave its warnings out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UsageError:
        raise
    except OWN_CODE as error:
        reason = first_line(error)
        raise UsageError(f"--to={format}: this model cannot be written so ({reason}); use --to=safetensors") from error


def _compared(format: str, trained: Trained, outputs: Callable[[Tensor], Tensor]) -> str:
    """Compare a graph's outputs with the module's for 1 and for 3 examples. Raises UsageError where they differ."""
    largest, predictor = 0.0, trained.predictor()
    for n in (1, 3):
        x = _sample(trained.dataset, n)
        with torch.no_grad(), _explained(format):
            expected = predictor(x)
            difference = (outputs(x) - expected).abs().max() / max(1.0, float(expected.abs().max()))
        largest = max(largest, float(difference))
    if not largest <= AGREES:
        raise UsageError(
            f"--to={format}: the graph's outputs differ from the model's by {largest:.1e}; use --to=safetensors"
        )
    return f"for 4 random examples its outputs differ from the module's by at most {largest:.1e}"


def _sample(dataset: Dataset, n: int) -> Tensor:
    """Random inputs as the dataset has them; of inputs of several tensors zeros, which are valid for each."""
    like, drawn = dataset.train.x, torch.Generator().manual_seed(n)
    shape = (n, *like.shape[1:])
    if dataset.layout is not None:
        return torch.zeros(shape, dtype=like.dtype)
    if like.is_floating_point():
        return torch.randn(shape, generator=drawn, dtype=like.dtype)
    values = 256 if like.dtype == torch.uint8 else dataset.num_tokens or 2
    return torch.randint(0, values, shape, generator=drawn).to(like.dtype)
