"""The dataset: rows of patients.csv, each owned by a hospital."""

import csv
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("patients.csv")
COLUMNS = ("age", "pressure", "sugar", "smokes")
USUAL = {"age": (55, 18), "pressure": (130, 15), "sugar": (5, 1), "smokes": (0, 1)}
"""A usual value and a usual spread of each column, known without looking at anyone's data."""


class Patients:
    """Inputs ``data [n, 4]``, ``targets [n]`` (1 = ill), and whose each row is, ``client_ids [n]``."""

    def __init__(self, root, train: bool, download: bool):
        with FILE.open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["test"] == "0") == train]
        columns = [[(float(row[c]) - USUAL[c][0]) / USUAL[c][1] for row in rows] for c in COLUMNS]
        self.data = np.array(columns, dtype="float32").T
        self.targets = np.array([int(row["ill"]) for row in rows])
        self.client_ids = np.array([row["hospital"] for row in rows])
