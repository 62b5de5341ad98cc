"""Folders of images, a folder for each class: ``data.name=imagefolder``, read file by file with pillow."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...errors import UsageError, first_line
from ..datasets import Dataset, Examples
from ..inputs import check_memory
from .split import Fraction, Seed, held_out

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
GREY = {"1", "L", "LA"}
MODES = {1: "L", 3: "RGB"}
Side = Annotated[int, Field(ge=1, le=10**5)]


def image_folder(
    root: Path,
    download: bool,
    targets: str = "class",
    *,
    resize: tuple[Side, Side] | None = None,
    channels: Literal[0, 1, 3] = 0,
    test_fraction: Fraction = 0.2,
    seed: Seed = 0,
) -> Dataset:
    """Images below ``root/train/CLASS`` and ``root/test/CLASS``, or below ``root/CLASS``; uint8 [n, channels, H, W].

    Classes are the names of their folders, numbered in sorted order.

    Args:
        root: the folder.
        download: not used.
        targets: what a target is: a class.
        resize: height and width of all images, resampled bilinearly; by default all must have one size.
        channels: 1 for shades of grey, 3 for colours; by default as the first image has them.
        test_fraction: of the images, drawn by ``seed``; for a folder without ``train`` and ``test``.
        seed: see ``test_fraction``.

    Raises:
        UsageError: one line that names the folder or the image.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        sides = [_listed(root / "train"), _listed(root / "test")]
    else:
        files = _listed(root)
        chosen = held_out(len(files), test_fraction, seed)
        sides = [[file for file, test in zip(files, chosen, strict=True) if test == side] for side in (False, True)]
    first = _opened(sides[0][0])
    size, mode = resize or (first.height, first.width), MODES[channels or (1 if first.mode in GREY else 3)]
    train, test = (_read(files, size, mode, resized=bool(resize), forced=bool(channels)) for files in sides)
    names = [np.array([file.parent.name for file in files]) for files in sides]
    return Dataset.of(Examples(train, names[0]), Examples(test, names[1]))  # type: ignore[arg-type]


def _listed(folder: Path) -> list[Path]:
    """The images of each class, class after class. Raises UsageError for fewer than two classes."""
    try:
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UsageError(
            f"data.root={str(folder)!r}: cannot be read ({error.strerror}); name a folder of classes",
            code="images-folder",
        ) from None
    files = [[p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES] for path in classes]
    filled = [path.name for path, some in zip(classes, files, strict=True) if some]
    if len(filled) < 2:
        raise UsageError(
            f"data.root={str(folder)!r}: {len(filled)} folders with images ({', '.join(filled)}); expected one for "
            "each class, two or more",
            code="images-classes",
        )
    return [file for some in files for file in some]


def _read(files: Sequence[Path], size: Sequence[int], mode: str, *, resized: bool, forced: bool) -> Tensor:
    """All images in one tensor, which is there before the first is read. Raises UsageError."""
    height, width = size
    shape = (len(files), 1 if mode == "L" else 3, height, width)
    check_memory(prod(shape), f"{len(files)} images of {height} x {width}", "set a smaller data.args.resize")
    x = torch.empty(shape, dtype=torch.uint8)
    for i, file in enumerate(files):
        image = _opened(file)
        if mode == "L" and image.mode not in GREY and not forced:
            raise UsageError(
                f"{file}: is in colour ({image.mode}), the first image is not; set data.args.channels to 1 or 3",
                code="images-channels",
            )
        image = image.convert(mode)
        if resized:
            image = image.resize((width, height), 2)  # bilinear
        elif (image.height, image.width) != (height, width):
            raise UsageError(
                f"{file}: is {image.height} x {image.width}, the first image {height} x {width}; set "
                "data.args.resize=[H,W]",
                code="images-size",
            )
        x[i] = torch.from_numpy(np.array(image)).view(height, width, -1).permute(2, 0, 1)
    return x


def read_images(files: Sequence[Path], size: Sequence[int], channels: int, *, resized: bool) -> Tensor:
    """Return images as uint8 [n, channels, H, W] of ``size`` (H, W). Raises UsageError, also for another size.

    ``resized``: whether images of another size are resampled instead.
    """
    return _read(files, size, MODES[channels], resized=resized, forced=True)


def _opened(file: Path) -> Any:
    """An image with its pixels. Raises UsageError."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("needs pillow; install it with pip install 'fedddp[images]'", code="images-pillow") from None
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # pillow's, for a damaged file
        raise UsageError(f"{file}: is no image that can be read ({first_line(error)})", code="images-file") from None
    if image.mode[0] in "IF":
        raise UsageError(
            f"{file}: has more than 8 bits a channel ({image.mode}), which pixels have not; convert it",
            code="images-mode",
        )
    return image
