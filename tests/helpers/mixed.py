"""A small table whose columns are of every kind."""

import csv

import numpy as np


def mixed_rows(big):
    """200 rows: size and kind, which is `big` or small, go together, and the label is left alone."""
    rng = np.random.default_rng(0)
    size = rng.normal(10, 2, 200)
    return [
        [f"{a:.3f}", str(round(a)), big if a > 10 else "small", "yes" if b else "no"]
        for a, b in zip(size, rng.random(200) > 0.5, strict=True)
    ]


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("size", "count", "kind", "label"), *rows])
    return path
