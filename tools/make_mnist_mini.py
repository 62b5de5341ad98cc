"""Make ``mnist_mini.npz``: a class-balanced draw from the real MNIST.

    python -m tools.make_mnist_mini ROOT    # ROOT holds MNIST in torchvision's layout

1,000 training and 200 test digits a class, drawn without replacement with a fixed seed, in shuffled order. The result
is the same file, byte for byte, with the same numpy and zlib; the arrays are the same everywhere (``--check``).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np

from fedddp.data.datasets import DATASETS
from fedddp.registry.choice import user_path
from fedddp.rng import numpy_generator

PATH = Path(str(resources.files("fedddp.data"))) / "mnist_mini.npz"
SEED = 1998  # the year of LeCun, Bottou, Bengio and Haffner's paper


def draw(root: Path) -> dict[str, np.ndarray]:
    """The four arrays: images uint8 [n, 28, 28], labels uint8 [n]."""
    dataset = DATASETS["mnist"](root, download=False)
    arrays: dict[str, np.ndarray] = {}
    for part, examples, per_class in (("train", dataset.train, 1000), ("test", dataset.test, 200)):
        rng = numpy_generator(SEED, f"mnist-mini/{part}")
        labels = examples.y.numpy()
        chosen = [rng.choice(np.flatnonzero(labels == digit), per_class, replace=False) for digit in range(10)]
        rows = rng.permutation(np.concatenate(chosen))
        arrays[f"{part}_x"] = examples.x[rows, 0].numpy()
        arrays[f"{part}_y"] = labels[rows].astype(np.uint8)
    return arrays


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names and contents, independent of the compression."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def write(arrays: dict[str, np.ndarray], path: Path) -> None:
    """An .npz as numpy reads it, with a fixed timestamp and the strongest compression."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.save(buffer, arrays[name])
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1998, 11, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="draw mnist_mini.npz from the real MNIST")
    parser.add_argument("root", type=user_path, help="folder with MNIST in torchvision's layout")
    parser.add_argument("--check", action="store_true", help="compare with the embedded file instead of writing it")
    args = parser.parse_args()
    arrays, path = draw(args.root), PATH
    if args.check:
        with np.load(path) as embedded:
            same = digest(dict(embedded)) == digest(arrays)
        print("the embedded digits are", "those of this draw" if same else "NOT those of this draw")
        raise SystemExit(0 if same else 1)
    write(arrays, path)
    print(f"{path.name}: {path.stat().st_size:,} bytes, arrays sha256 {digest(arrays)}")
    print(f"file sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
