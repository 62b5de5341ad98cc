"""Draw what is asked for by a conditional GAN that was trained: the classes, one after the other, as one image.

    fedddp generate RUN_FOLDER 0123456789 [--out=digits.png] [--rows=8] [--seed=0]
    fedddp generate RUN_FOLDER --generate=0123456789                      # the same
    fedddp generate RUN_FOLDER 0123456789 --judge=OTHER_RUN [--samples=1000]

``--judge``: the run folder of a classifier; tells how many of ``--samples`` drawings, as many of each class asked for,
it takes for what was asked. Classes above 9 are given with commas: 3,14,15. Keys such as --data.root=... replace those
of the run, should its data lie elsewhere by now. Takes the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.saved import newest
from ..comm.world import Place
from ..config import Config, UsageError, build, parse, read_toml
from ..data import Dataset
from ..flat import FlatModule
from ..registry.choice import user_path
from ..setup.load import load_data
from ..setup.resolve import resolve
from ..setup.task import task_of
from ..tasks import Task
from ..tasks.conditional_gan import drawn
from ..telemetry import figures, lasting_output, log_to_stderr

AT_ONCE = 200


@dataclass(frozen=True)
class Trained:
    """A run's model as its newest checkpoint has it, in evaluation mode, and what it was trained on."""

    task: Task
    module: nn.Module
    dataset: Dataset

    def predictions(self, images: Tensor) -> Tensor:
        """The class of each of ``images [n, C, H, W]`` in [0, 1], [n]."""
        dtype = next(self.module.parameters()).dtype
        x = self.dataset.normalizer(dtype)((255 * images).round().to(torch.uint8))
        with torch.no_grad():
            return torch.cat([self.module(some).argmax(dim=1) for some in x.split(AT_ONCE)])


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 2 bad usage or configuration)."""
    log_to_stderr(0, 1)
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or "--help" in words or "-h" in words:
        print(__doc__)
        return 0 if words else 2
    try:
        _generate(*_asked(words))
    except UsageError as error:
        print(f"fedddp: {error}", file=sys.stderr)
        return 2
    return 0


def trained(folder: Path, overrides: Sequence[str] = ()) -> Trained:
    """The model of a run folder. Raises UsageError for one without a whole checkpoint."""
    if not (folder / "config.toml").is_file():
        raise UsageError(f"{folder}: is not a run folder (it has no config.toml); give one that fedddp.train made")
    saved = newest(folder)
    if saved is None:
        raise UsageError(f"{folder}: has no whole checkpoint; train with checkpoint.every=1")
    config: Config = resolve(build(read_toml(folder / "config.toml"), *parse(overrides).layers), Place())
    dataset, _ = load_data(config)
    task = task_of(config, dataset)
    flat = FlatModule(task.model(config.run.seed).eval())
    if unlike := saved.unlike(flat.spec):
        raise UsageError(f"{saved.folder}: is of another model: {unlike}; give the model as it was")
    flat.load(saved.server().w)
    return Trained(task, flat.module, dataset)


def _asked(words: Sequence[str]) -> tuple[Path, str, dict[str, str], list[str]]:
    """(run folder, classes, options of this program, overrides of configuration keys)."""
    known = {"out": "digits.png", "rows": "8", "seed": "0", "judge": "", "samples": "1000", "generate": ""}
    plain, overrides, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            plain.append(word)
        elif "." in key:
            overrides.append(word)
        elif key not in known:
            raise UsageError(f"{word}: unknown option; the options are {', '.join('--' + k for k in known)}")
        elif not equals and not rest:
            raise UsageError(f"{word}: has no value; write {word}=value")
        else:
            known[key] = value if equals else rest.pop(0)
    if known["generate"]:
        plain.append(known["generate"])
    if len(plain) != 2:
        raise UsageError("give a run folder and the classes to draw: fedddp generate RUN_FOLDER 0123456789")
    return user_path(plain[0]), plain[1], known, overrides


def _generate(folder: Path, text: str, options: dict[str, str], overrides: list[str]) -> None:
    rows, samples, seed = (_number(options, key) for key in ("rows", "samples", "seed"))
    gan = trained(folder, overrides)
    if gan.task.classifies:
        raise UsageError(f"{folder}: is the run of a classifier; --generate needs one of task.name=conditional_gan")
    classes = _classes(text, gan.task.num_classes)
    images = drawn(gan.module, classes.repeat(rows), seed).unflatten(0, (rows, len(classes)))
    try:
        figures.save(figures.grid(images, scale=2), user_path(options["out"]))
    except ValueError as error:
        raise UsageError(f"--out={error}") from None
    print(f"{rows} rows of {text} drawn in {options['out']}")
    if options["judge"]:
        judge = trained(user_path(options["judge"]), overrides)
        _check_judge(judge, user_path(options["judge"]), images)
        asked = classes.repeat(-(-samples // len(classes)))[:samples]
        right = judge.predictions(drawn(gan.module, asked, seed + 1)) == asked
        print(f"{options['judge']} takes {int(right.sum())} of {len(asked)} drawings for the class that was asked for")
        each = {int(c): float(right[asked == c].double().mean()) for c in asked.unique()}
        print("  ".join(f"{c}: {share:.1%}" for c, share in each.items()))


def _check_judge(judge: Trained, folder: Path, images: Tensor) -> None:
    """Whether it classifies such drawings, ``images [rows, columns, C, H, W]``. Raises UsageError."""
    drawn_as, trained_on = list(images.shape[2:]), list(judge.dataset.train.x.shape[1:])
    if not judge.task.classifies:
        raise UsageError(f"--judge={folder}: is not the run of a classifier; train one on the same dataset")
    if drawn_as != trained_on:
        raise UsageError(
            f"--judge={folder}: classifies inputs of shape {trained_on}, drawings are {drawn_as}; train one on "
            "the same dataset"
        )


def _number(options: dict[str, str], key: str) -> int:
    if not options[key].isdecimal() or (key != "seed" and int(options[key]) < 1):
        raise UsageError(f"--{key}={options[key]!r}: should be a whole number")
    return int(options[key])


def _classes(text: str, num_classes: int) -> Tensor:
    parts = text.split(",") if "," in text else list(text)
    if not all(part.strip().isdecimal() and int(part) < num_classes for part in parts):
        raise UsageError(f"{text!r}: should be classes from 0 to {num_classes - 1}: 0123456789, or 3,14,15")
    return torch.tensor([int(part) for part in parts])


if __name__ == "__main__":
    sys.exit(main())
