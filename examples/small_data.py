"""Small real data of scikit-learn: two tables whose rows belong to five hospitals, and digits with several labels.

python -m examples.small_data [SEED]      # writes cancer.csv and diabetes.csv; SEED draws hospitals and test rows

The hospitals are drawn at random, and so is the test set, a quarter of the rows. How to train on them: docs/tasks.md.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

LABELS = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "at least 5": (5, 6, 7, 8, 9),
    "has a loop": (0, 6, 8, 9),
}


def write(folder: Path, seed: int) -> None:
    """Write both tables; the columns besides the inputs are target, hospital and part (train or test)."""
    for name, data in (("cancer", load_breast_cancer()), ("diabetes", load_diabetes())):
        rng = np.random.default_rng(seed)
        hospital = rng.integers(0, 5, len(data.data))
        part = np.where(rng.random(len(data.data)) < 0.25, "test", "train")
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*data.feature_names, "target", "hospital", "part"])
            for x, y, owner, where in zip(data.data, data.target, hospital, part, strict=True):
                rows.writerow([*map(float, x), y, f"H{owner}", where])
        print(f"{name}.csv: {len(data.data)} rows, {(part == 'test').sum()} of them for the test")


class DigitProperties:
    """Scikit-learn's 1,797 digits of 8x8 pixels, each with the labels of `LABELS`; every fourth is a test example."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        images, digits = load_digits(return_X_y=True)
        chosen = (np.arange(len(digits)) % 4 != 3) == train
        self.data = (images[chosen] / 16).astype(np.float32)
        labels = [np.isin(digits[chosen], members) for members in LABELS.values()]
        self.targets = np.stack(labels, axis=1).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.data[i], self.targets[i]


if __name__ == "__main__":
    write(Path(), int(sys.argv[1]) if len(sys.argv) > 1 else 0)
