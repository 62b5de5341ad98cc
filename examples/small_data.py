"""Small real data of scikit-learn: two tables whose rows belong to five hospitals, and digits with several labels.

python -m examples.small_data [SEED]    # writes cancer.csv and diabetes.csv; SEED draws hospitals and test rows

It also prints the scores of scikit-learn's models of all training rows together. Federated runs: docs/tasks.md."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score

WEIGHT_DECAY = 0.01
LABELS = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "5 or more": (5, 6, 7, 8, 9), "has a loop": (0, 6, 8, 9)}


def write(folder: Path, seed: int) -> dict[str, float]:
    """Write both tables, a quarter of the rows for the test. Return the test scores of the models of all rows."""
    scores = {}
    for name, data in dict[str, Any](cancer=load_breast_cancer(), diabetes=load_diabetes()).items():
        rng = np.random.default_rng(seed)
        hospital, test = rng.integers(0, 5, len(data.data)), rng.random(len(data.data)) < 0.25
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*data.feature_names, "target", "hospital", "part"])
            for x, y, owner, held in zip(data.data, data.target, hospital, test, strict=True):
                rows.writerow([*map(float, x), y, f"H{owner}", "test" if held else "train"])
        x, y = data.data - data.data[~test].mean(axis=0), data.target
        x /= x[~test].std(axis=0)
        if name == "cancer":
            model = LogisticRegression(C=1 / (WEIGHT_DECAY * (~test).sum()), max_iter=1000).fit(x[~test], y[~test])
            scores[name] = float(roc_auc_score(y[test], model.decision_function(x[test])))
        else:
            scores[name] = float(r2_score(y[test], LinearRegression().fit(x[~test], y[~test]).predict(x[test])))
    return scores


class DigitProperties:
    """Scikit-learn's 1,797 digits of 8x8 pixels, each with the labels of `LABELS`; every fourth is a test example."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        images, digits = load_digits(return_X_y=True)
        chosen = (np.arange(len(digits)) % 4 != 3) == train
        self.data = (images[chosen] / 16).astype(np.float32)
        self.targets = np.stack([np.isin(digits[chosen], own) for own in LABELS.values()], axis=1).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.data[i], self.targets[i]


if __name__ == "__main__":
    found = write(Path(), int([*sys.argv, "0"][1]))
    print(f"models of all rows together: AUROC {found['cancer']:.4f}, R2 {found['diabetes']:.4f}")
