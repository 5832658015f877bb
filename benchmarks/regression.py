"""Compare densities of a real target given inputs: ours, NGBoost's and XGBDistribution's, on four tables of UCI.

`python benchmarks/regression.py FOLDER` reads concrete.csv, energy.csv, wine-quality-red.csv and yacht.csv, whose last
column is the target, and prints a Markdown table of the mean test NLL in nats, its standard error over the splits, and
the coverage of the 90 % interval. For split s, `numpy.random.default_rng(s).permutation(n)`: the first 90 % train, of
which the last 10 % validate (they stop each side early), the last 10 % test. Ours is `fit("mixture", ...)` with its
defaults for all four. NGBoost has its defaults (a normal distribution) with 2,000 trees at most and 50 rounds of
patience, XGBDistribution those of its documentation, 500 and 10. `--peers PYTHON` names the interpreter of the peers.
The seconds of a fit are of CPU time. `--only SIDE --first S --step N` prints the figures of the splits S, S + N, ... as
JSON lines, and `--lines FILE ...` makes the table of these.

Wine's target is an integer: ours is the probability of each integer, which is the density of the target plus a uniform
draw on [-1/2, 1/2]. The peers' column "density" is their normal density at the integer, and "mass" the probability of
its unit interval.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TABLES = ("concrete", "energy", "wine-quality-red", "yacht")
PEERS = ("ngboost", "xgboost_distribution")


def rows_of(n: int, s: int) -> tuple[Any, Any, Any]:
    """Return the training, validation and test rows of split s."""
    import numpy as np

    order = np.random.default_rng(s).permutation(n)
    train, test = order[: round(0.9 * n)], order[round(0.9 * n) :]
    validation = max(1, round(0.1 * len(train)))
    return train[:-validation], train[-validation:], test


def peer(name: str, path: Path, s: int) -> dict[str, float]:
    """Fit a peer and return its test figures; runs in the peers' environment."""
    import numpy as np
    from scipy.stats import norm

    table = np.loadtxt(path, delimiter=",", skiprows=1)
    (x, y), (vx, vy), (tx, ty) = ((table[rows, :-1], table[rows, -1]) for rows in rows_of(len(table), s))
    start = time.process_time()
    if name == "ngboost":
        from ngboost import NGBRegressor

        model = NGBRegressor(n_estimators=2000, early_stopping_rounds=50, verbose=False, random_state=s)
        model.fit(x, y, X_val=vx, Y_val=vy)
        seconds = time.process_time() - start
        loc, scale = (model.pred_dist(tx).params[key] for key in ("loc", "scale"))
    else:
        from xgboost_distribution import XGBDistribution

        model = XGBDistribution(
            distribution="normal", n_estimators=500, early_stopping_rounds=10, random_state=s, n_jobs=1
        )
        model.fit(x, y, eval_set=[(vx, vy)], verbose=False)
        seconds = time.process_time() - start
        found = model.predict(tx)
        loc, scale = np.asarray(found.loc, dtype=float), np.asarray(found.scale, dtype=float)
    mass = norm.cdf(ty + 0.5, loc, scale) - norm.cdf(ty - 0.5, loc, scale)
    return {
        "nll": float(-norm.logpdf(ty, loc, scale).mean()),
        "mass": float(-np.log(np.maximum(mass, 1e-30)).mean()),
        "coverage": float((np.abs(ty - loc) <= norm.ppf(0.95) * scale).mean()),
        "rmse": float(np.sqrt(((ty - loc) ** 2).mean())),
        "seconds": seconds,
    }


def ours(path: Path, s: int) -> dict[str, float]:
    """Fit the mixture with its defaults and return its test figures."""
    from dataclasses import replace

    import torch

    import loglik
    from loglik.data import load
    from loglik.data.dataset import Split

    torch.set_num_threads(1)
    with path.open(encoding="utf-8") as file:
        target = next(csv.reader(file))[-1]
    data = load(path, target=target)
    every = data.split("all")
    parts = [torch.from_numpy(rows) for rows in rows_of(len(every), s)]
    train, validation, test = (Split(every.x[rows], every.y[rows]) for rows in parts)  # type: ignore[index]
    data = replace(data, train=train, validation=validation, test=test)
    start = time.process_time()
    run = loglik.fit("mixture", data, seed=s, device="cpu", progress=False)
    seconds = time.process_time() - start
    result = loglik.evaluate(run, data, split="test", seed=s)
    found = result.targets[target]
    return {"nll": -result.nats, "coverage": found["coverage"], "rmse": found["rmse"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", default=sys.executable, help="Python of the peers' environment")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--only", choices=("loglik", *PEERS), help="run one side, as JSON lines")
    parser.add_argument("--lines", type=Path, nargs="+", help="files of JSON lines, to make the table of")
    arguments = parser.parse_args()
    if arguments.only:
        for s in range(arguments.first, arguments.splits, arguments.step):
            for table in TABLES:
                path = arguments.folder / f"{table}.csv"
                found = ours(path, s) if arguments.only == "loglik" else peer(arguments.only, path, s)
                print(json.dumps({"side": arguments.only, "table": table, "split": s, **found}), flush=True)
        return
    lines: list[dict[str, Any]] = []
    if arguments.lines:
        texts = [file.read_text(encoding="utf-8") for file in arguments.lines]
        lines = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
        print(report(lines, arguments.folder))
        return
    for side in ("loglik", *PEERS):
        python = sys.executable if side == "loglik" else arguments.peers
        command = [python, __file__, str(arguments.folder), "--splits", str(arguments.splits), "--only", side]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    print(report(lines, arguments.folder))


def report(lines: list[dict[str, Any]], folder: Path) -> str:
    """Return the figures as a Markdown table."""
    text = ["| table | density | test NLL | mass | RMSE | in the 90 % interval | seconds per fit |", "|" + "---|" * 7]
    for table in TABLES:
        for side in ("loglik", *PEERS):
            own = [line for line in lines if line["table"] == table and line["side"] == side]
            if not own:
                continue
            n = len(own)
            mean = {key: sum(line[key] for line in own) / n for key in own[0] if key not in ("side", "table", "split")}
            spread = math.sqrt(sum((line["nll"] - mean["nll"]) ** 2 for line in own) / max(1, n - 1) / n)
            mass = f"{mean['mass']:.3f}" if "mass" in mean else "" if "wine" not in table else f"{mean['nll']:.3f}"
            text.append(
                f"| {table} | {side} | {mean['nll']:.3f} ± {spread:.3f} | {mass} | {mean['rmse']:.3f} | "
                f"{mean['coverage']:.1%} | {mean['seconds']:.1f} |"
            )
    text.append("")
    sizes = {table: len((folder / f"{table}.csv").read_text(encoding="utf-8").splitlines()) - 1 for table in TABLES}
    for side in ("loglik", *PEERS):
        own = [(line["coverage"], sizes[line["table"]] // 10) for line in lines if line["side"] == side]
        if own:
            pool = sum(share * rows for share, rows in own) / sum(rows for _, rows in own)
            text.append(f"{side}: {pool:.1%} of all test targets are in their 90 % intervals, in {len(own)} fits.")
    return "\n".join(text)


if __name__ == "__main__":
    main()
