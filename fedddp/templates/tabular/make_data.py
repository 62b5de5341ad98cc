"""Make patients.csv: 1,500 invented patients of five hospitals, which differ in size and in the age of their patients.

python make_data.py
"""

import csv

import numpy as np

rng = np.random.default_rng(0)
hospital = rng.choice(5, size=1500, p=[0.4, 0.25, 0.15, 0.12, 0.08])
age = rng.normal(45 + 8 * hospital, 10).clip(18, 95).round()
pressure = rng.normal(110 + 0.4 * age, 12).round()
sugar = rng.normal(5.2, 0.9, size=1500).round(1)
smokes = rng.random(1500) < 0.25
risk = 0.06 * (age - 60) + 0.04 * (pressure - 135) + 0.7 * (sugar - 5.2) + 1.1 * smokes - 0.3
ill = rng.random(1500) < 1 / (1 + np.exp(-risk))
test = rng.random(1500) < 0.2
with open("patients.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["hospital", "age", "pressure", "sugar", "smokes", "ill", "test"])
    for i in range(1500):
        row = [int(age[i]), int(pressure[i]), sugar[i], int(smokes[i]), int(ill[i]), int(test[i])]
        writer.writerow(["ABCDE"[hospital[i]], *row])
