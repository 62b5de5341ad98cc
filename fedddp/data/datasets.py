"""Load datasets as tensors: images as uint8 until they are used, classes as int64.

`mnist-mini` is embedded in the package; MNIST, Fashion-MNIST, EMNIST and CIFAR-10 come through torchvision, in its
folder layout. A user's own class is named by import path and follows torchvision's convention.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from math import prod
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from ..comm.world import Place
from ..errors import UsageError, named, out_of_memory
from ..registry.choice import import_class
from ..registry.kinds import unfit
from ..registry.spelling import suggestion
from ..registry.torchvision_operators import torchvision_class
from ..rng import numpy_generator
from .inputs import Normalizer, Shape, as_inputs, check_inputs, moments
from .labels import numbers
from .reading import Source, check_call, constructed, read
from .several import Layout
from .targets import TARGETS

ARGUMENTS = ConfigDict(allow_inf_nan=False)

log = logging.getLogger("fedddp")

DEFAULT_ROOT = "data"  # made when it is needed; another one that does not exist is taken for a slip of the pen
MOST_CLASSES = 1_000_000
Count = Annotated[int, Field(ge=1, le=10**9)]
Side = Annotated[int, Field(ge=1, le=10**6)]
MOST_NUMBERS = 2**30
"""Of synthetic inputs: 1 GB, a byte each."""
EMNIST_CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "mnist": 10}  # letters are 1 to 26


@dataclass(frozen=True)
class Examples:
    """Inputs ``x [n, ...]``, targets ``y [n, ...]``, and who made each example, if known.

    Inputs are pixels (uint8), measurements (floating point, taken as they are) or token ids (int64); what targets are
    says `Dataset.targets`. ``owner [n]`` are any whole numbers, as many different ones as there are owners.
    """

    x: Tensor
    y: Tensor
    owner: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Examples:
        return Examples(self.x.to(device), self.y.to(device), self.owner)


@dataclass(frozen=True)
class Dataset:
    """Training and test examples.

    Attributes:
        num_classes: number of classes C, of labels L, or of real numbers d of a target.
        mean, std: of each channel, of pixels scaled to [0, 1].
        targets: what a target is, a key of `TARGETS`: "class", "real", "labels" or "positions".
        vocabulary: number of token ids (padding, 0, included), of inputs int64; None: the largest id there is, plus 1.
        target_mean, target_std: of each real number, over the training set; computed where they are not given.
        decode: from token ids to text, where tokens are of text.
        layout: of inputs of several tensors, of which ``x`` has a row of numbers an example.
        class_names: what the classes are called; empty where by their numbers.
        alphabet: the character of each token id from 1 on, where tokens are characters; gives ``decode``.
    """

    train: Examples
    test: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: str = "class"
    vocabulary: int | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)
    layout: Layout | None = None
    class_names: tuple[str, ...] = ()
    alphabet: str | None = None

    def __post_init__(self) -> None:
        if self.alphabet is not None and self.decode is None:
            object.__setattr__(self, "decode", partial(_spelled, self.alphabet))  # without the examples
        for part, examples in (("training", self.train), ("test", self.test)):
            if not examples.x.dim():
                raise UsageError(
                    f"the {part} set is a single number; give a tensor [n, ...], an example in each row",
                    code="inputs-form",
                )
            if len(examples.x) != len(examples.y) or not len(examples):
                raise UsageError(
                    f"the {part} set has {len(examples.x)} inputs and {len(examples.y)} labels", code="dataset-lengths"
                )
            if examples.owner is not None and len(examples.owner) != len(examples.y):
                raise UsageError(
                    f"the {part} set has {len(examples.y)} examples and {len(examples.owner)} client_ids",
                    code="dataset-lengths",
                )
            y, kind = examples.y, TARGETS[self.targets]
            if not kind.fits(y, self.num_classes):
                span = f", {y.min():g} to {y.max():g}" if y.numel() else ""
                raise UsageError(
                    f"the {part} labels are {y.dtype} {list(y.shape)}{span}; expected {kind.words} with num_classes="
                    f"{self.num_classes}: Dataset.of converts what can be converted",
                    code="labels-type",
                )
        if self.num_classes > MOST_CLASSES:  # a score each, for every example of a batch
            raise UsageError(f"num_classes={self.num_classes:,}: {MOST_CLASSES:,} are the most", code="num-classes")
        check_inputs(self.train.x, self.test.x)
        if self.targets == "real" and self.target_mean is None:
            mean, std = self.train.y.double().mean(0), self.train.y.double().std(0, correction=0)
            object.__setattr__(self, "target_mean", tuple(mean.tolist()))
            object.__setattr__(self, "target_std", tuple(torch.where(std > 0, std, 1.0).tolist()))

    def form(self) -> dict[str, Any]:
        """Everything but the examples, as JSON has it; see `blank`."""
        x = self.train.x
        kind = {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch."), "vocabulary": self.num_tokens}
        fields = ("num_classes", "mean", "std", "targets", "target_mean", "target_std", "class_names", "alphabet")
        kind["layout"] = self.layout and self.layout.form()
        return kind | {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in fields}

    @classmethod
    def blank(cls, form: Mapping[str, Any]) -> Dataset:
        """A dataset of one blank example that is otherwise of ``form``; entries that earlier versions lack are open."""
        known, shape = dict(form), form["shape"]
        x = torch.zeros(1, *known.pop("shape"), dtype=getattr(torch, known.pop("dtype")))
        known |= {name: tuple(v) for name, v in known.items() if isinstance(v, list)}
        known["vocabulary"] = known.get("vocabulary") or None
        known["layout"] = Layout.of_form(form["layout"]) if form.get("layout") else None
        y = TARGETS[known.get("targets", "class")].blank(known["num_classes"], shape)
        one = Examples(x, y)
        return cls(one, one, **known)

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary; 0 for inputs that are no tokens."""
        if self.train.x.is_floating_point() or self.train.x.dtype in (torch.uint8, torch.bool):
            return 0
        return self.vocabulary or 1 + max(int(self.train.x.max()), int(self.test.x.max()))

    @property
    def shape(self) -> Shape:
        """The shape of one input, with what a model has to know of it besides."""
        return Shape(self.train.x.shape[1:], self.num_tokens, self.targets == "positions")

    @property
    def classes(self) -> NDArray[np.int64] | None:
        """The class of each training example, [n]; None where targets are no classes."""
        return self.train.y.numpy() if self.targets == "class" else None

    def normalizer(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Normalizer:
        """Return the function from inputs as this dataset holds them to inputs of a model of ``dtype``."""
        return Normalizer(self.mean, self.std, dtype, device)

    @classmethod
    def of(cls, train: Any, test: Any, num_classes: int | None = None, targets: str = "class") -> Dataset:
        """Make a dataset of (x, y) pairs of arrays, of objects that yield (x, y) or have ``data`` and ``targets``,
        or of two `Examples`.

        Pixels (uint8) are normalised by the training set's own mean and standard deviation. Floating-point inputs are
        taken as they are, whole numbers and bools stay what they are. Labels are numbered 0 to C - 1, see `numbered`;
        ``num_classes`` says C where not every class has an example. ``targets``: what a target is, see `TARGETS`.

        Raises:
            ValueError: One line, for inputs or labels that are none.
        """
        with named("dataset"):
            train, test, count, more = _examples(train, test, targets, num_classes)
            return cls(train, test, count, *moments(train.x), targets, **more)


def _spelled(alphabet: str, tokens: Sequence[int]) -> str:
    """The text of ``tokens``; padding, 0, is left out."""
    return "".join(alphabet[token - 1] for token in tokens if token)


def mnist_mini(root: Path, download: bool, targets: str = "class") -> Dataset:
    """10,000 training and 2,000 test digits of the real MNIST, 1,000 and 200 per class, embedded in the package."""
    with resources.files("fedddp.data").joinpath("mnist_mini.npz").open("rb") as file, np.load(file) as arrays:
        parts = {k: torch.from_numpy(arrays[k]) for k in ("train_x", "train_y", "test_x", "test_y")}
    return Dataset(
        Examples(parts["train_x"].unsqueeze(1), parts["train_y"].long()),
        Examples(parts["test_x"].unsqueeze(1), parts["test_y"].long()),
        num_classes=10,
        mean=(0.1307,),
        std=(0.3081,),
    )


def synthetic(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    num_train: Count = 2000,
    num_test: Count = 500,
    num_classes: Annotated[int, Field(ge=2, le=MOST_CLASSES)] = 10,
    shape: Annotated[tuple[Side, ...], Field(min_length=1)] = (1, 28, 28),
    noise: Annotated[float, Field(ge=0, le=1e6)] = 0.3,
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0,
) -> Dataset:
    """One random pattern per class plus noise, learnable in seconds, for tests and measurements without data."""
    asked = (num_train + num_test + 8 * num_classes) * prod(shape)  # bytes; patterns are floats
    if asked > MOST_NUMBERS:
        raise UsageError(f"data.args asks for {asked:,} numbers; {MOST_NUMBERS:,} are the most", code="dataset-size")
    rng = numpy_generator(seed, "synthetic")
    patterns = rng.random((num_classes, *shape), dtype=np.float32)

    def draw(n: int) -> Examples:
        y = rng.integers(num_classes, size=n)
        x = np.empty((n, *shape), dtype=np.uint8)
        at_once = max(1, 2**24 // prod(shape))  # 64 MB of floats
        for first in range(0, n, at_once):
            labels = y[first : first + at_once]
            some = patterns[labels] + noise * rng.standard_normal((len(labels), *shape), dtype=np.float32)
            x[first : first + at_once] = (255 * some.clip(0, 1)).astype(np.uint8)
        return Examples(torch.from_numpy(x), torch.from_numpy(y))

    channels = shape[0] if len(shape) == 3 else 1  # as `moments` has them
    return Dataset(draw(num_train), draw(num_test), num_classes, mean=(0.5,) * channels, std=(0.3,) * channels)


@dataclass(frozen=True)
class TorchvisionImages:
    """A dataset of torchvision by class name, with the published mean and standard deviation of its pixels."""

    class_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int | None = 10
    transposed: bool = False  # EMNIST stores its images column by column

    def __call__(self, root: Path, download: bool, targets: str = "class", **args: Any) -> Dataset:
        if not root.is_dir() and not (download and root == Path(DEFAULT_ROOT)):  # said before seconds of import
            how = "make the folder for a download" if download else "set data.download=true"
            raise UsageError(
                f"data.root={str(root)!r} does not exist; point it at the data, or {how}", code="dataset-missing"
            )
        both = constructed(torchvision_class(self.class_name), root, download, args)
        train, test, count, _ = _examples(*both, "class", self.num_classes)
        if self.transposed:
            train, test = (Examples(e.x.transpose(-1, -2).contiguous(), e.y) for e in (train, test))
        return Dataset(train, test, count, self.mean, self.std)

    def blank(self) -> Dataset:
        """Return as many blank images as there are, with classes in turn: enough to plan a run, not to train one."""
        side, train = (28, 60_000) if len(self.mean) == 1 else (32, 50_000)

        def images(n: int) -> Examples:
            return Examples(torch.zeros(n, len(self.mean), side, side, dtype=torch.uint8), torch.arange(n) % 10)

        return Dataset(images(train), images(10_000), 10, self.mean, self.std)


def emnist(root: Path, download: bool, targets: str = "class", *, split: str = "balanced") -> Dataset:
    """EMNIST (Cohen et al. 2017): ``split`` is balanced, byclass, bymerge, letters, digits or mnist."""
    count = EMNIST_CLASSES.get(split)
    return TorchvisionImages("EMNIST", (0.1736,), (0.3317,), count, transposed=True)(
        root, download, targets, split=split
    )


def from_class(cls: Callable[..., Any], root: Path, download: bool, targets: str = "class", **args: Any) -> Dataset:
    """A user's class, called as torchvision's are: ``cls(root=..., train=..., download=..., **args)``.

    It yields (input, label) pairs or has ``data`` and ``targets``, and is read once, at start; see `Dataset.of`. With
    ``client_ids``, one number an example, it also says who owns what (``data.partition.name=natural``).
    """
    both = constructed(cls, root, download, args)
    train, test, count, more = _examples(*both, targets)
    return Dataset(train, test, count, *moments(train.x), targets, **more)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist-mini": mnist_mini,
    "mnist": TorchvisionImages("MNIST", (0.1307,), (0.3081,)),
    "fashion_mnist": TorchvisionImages("FashionMNIST", (0.2860,), (0.3530,)),
    "emnist": emnist,
    "cifar10": TorchvisionImages("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "synthetic": synthetic,
}


def load(name: str, root: Path, download: bool, args: Mapping[str, Any], targets: str = "class") -> Dataset:
    """The dataset that ``data.name`` names, from `DATASETS` or by import path. Raises ValueError naming the key.

    ``targets``: the kind that its targets are read as; a dataset whose targets are of one kind anyway ignores it.
    """
    if ":" not in name and name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UsageError(
            f"data.name={name!r}: should be one of {known} or package.module:Class{suggestion(name, DATASETS)}",
            code="dataset-unknown",
        )
    with named(f"data.name={name!r}"), _within_memory():
        if ":" in name:
            cls = import_class(name)
            if wrong := unfit(cls, object):
                raise UsageError(wrong, code="dataset-arguments")
            check_call(cls, args)
            return from_class(cls, root, download, targets, **args)
        loader = DATASETS[name]
        try:
            inspect.signature(loader).bind(root, download, targets, **args)
        except TypeError as error:
            raise UsageError(f"data.args={dict(args)!r} does not fit ({error})", code="dataset-arguments") from None
        return loader(root, download, targets, **_checked(loader, args))


@contextlib.contextmanager
def _within_memory() -> Iterator[None]:
    """Raise UsageError where the data of the block do not fit into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UsageError("does not fit into memory; take fewer or smaller examples", code="inputs-memory") from error


def _checked(loader: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """``args`` as the types of ``loader``'s arguments have them. Raises ValueError."""
    hints = get_type_hints(loader, include_extras=True) if inspect.isfunction(loader) else {}
    checked = dict(args)
    for name in args.keys() & hints.keys():
        try:
            checked[name] = TypeAdapter(hints[name], config=ARGUMENTS).validate_python(args[name])
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should", "should")
            raise UsageError(
                f"data.args.{name}={str(args[name])[:80]!r}: {message}", code="dataset-arguments"
            ) from None
    return checked


def _examples(
    train: Any, test: Any, targets: str, num_classes: int | None = None
) -> tuple[Examples, Examples, int, dict[str, Any]]:
    """Both sets, the number of classes, the layout of inputs of several tensors and the names of classes.

    What a user has to know about the labels is said once, by rank 0.
    """
    first, second = (_source(data, part) for data, part in ((train, "training"), (test, "test")))
    if second.num_classes not in (None, first.num_classes):
        raise UsageError(
            f"num_classes is {first.num_classes} in training, {second.num_classes} in the test set", code="num-classes"
        )
    if first.layout != second.layout:
        forms = [source.layout or f"one tensor {list(source.x.shape[1:])}" for source in (first, second)]
        raise UsageError(
            f"training inputs are {forms[0]}, test inputs {forms[1]}; give both alike", code="inputs-sets-differ"
        )
    count = first.num_classes if num_classes is None else num_classes
    if count is not None and (isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1):
        raise UsageError(f"num_classes is {count!r}; expected a whole number from 1", code="num-classes")
    labels = TARGETS[targets].read(first.y, second.y, None if count is None else int(count))
    if Place.from_env().rank == 0:
        for remark in labels.remarks:
            log.warning("%s", remark)
    owners = (None if s.owner is None else numbers(s.owner, "client_ids") for s in (first, second))
    x, y = (first.x, second.x), (labels.train, labels.test)
    train, test = (Examples(*columns) for columns in zip(x, y, owners, strict=True))
    return train, test, labels.num_classes, {"layout": first.layout, "class_names": labels.names}


def _source(data: Any, part: str) -> Source:
    if isinstance(data, Examples):
        return Source(as_inputs(data.x, f"{part} inputs"), data.y, data.owner)
    return read(data, part)
