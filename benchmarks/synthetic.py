"""Synthetic tables: our samplers, scikit-learn's mixture and SDV's default synthesizer, by one classifier.

`python benchmarks/synthetic.py TABLE.csv ... [--models flow,autoregressive] [--steps 1500] [--splits 1]` prints for
each table and sampler the AUC of the two-sample classifier, the column shapes and the pair trends, the share of samples
that are near-copies of training rows, and CPU seconds; means over splits, with the standard error of the AUC's mean
over splits where there are several.

All samplers see the same training rows, and none is tested on them: the classifier is cross-validated on the rows that
are held out (a fifth of all), or learns from training rows and is tested on held-out ones where fewer than 1,000 are. A
sampler whose samples are near-copies of training rows is marked: a low AUC is then no merit. `training rows` are drawn
from the training rows again, which is what memorising would give.

scikit-learn's mixture has full covariances, codes of categories, and rounded values within the range of the data; its
number of components has the lowest BIC, or on few rows the highest likelihood of rows left out in 5 folds. SDV's
GaussianCopulaSynthesizer runs where `sdv` is installed. With `sdmetrics` installed, our scores are checked against it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
COMPONENTS = (1, 2, 5, 10, 20, 50)
FIT_ROWS = 20_000  # of scikit-learn's mixture
MAX_ROWS = 3000
ENOUGH = 1000  # held-out rows
FEW = 5000  # training rows, up to which the number of components is cross-validated too
TOLERANCE = 1e-6
Draw = Callable[[int], Any]


def mixture(train: Any, columns: Any, by: str) -> Draw:
    """Return a sampler by scikit-learn's mixture; a missing value is a variable of its own."""
    import numpy as np
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import cross_val_score

    gaps = np.isnan(train)
    known = np.where(gaps, np.nanmean(train, 0), train)
    with_gaps = np.flatnonzero(gaps.any(0))
    x = np.concatenate([known, gaps[:, with_gaps]], 1)
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    z = ((x - mean) / std)[np.random.default_rng(0).permutation(len(x))[:FIT_ROWS]]
    made = [GaussianMixture(k, random_state=0) for k in COMPONENTS if k * 5 <= len(z) * (0.8 if by != "BIC" else 1)]
    if by == "BIC":
        best = min((model.fit(z) for model in made), key=lambda found: found.bic(z))
    else:
        best = max(made, key=lambda model: cross_val_score(model, z, cv=5).mean()).fit(z)

    def draw(n: int) -> Any:
        drawn = best.sample(n)[0] * std + mean
        rows = np.clip(drawn[:, : len(columns)], np.nanmin(train, 0), np.nanmax(train, 0))
        for d, column in enumerate(columns):
            if column.type != "numeric" or column.decimals is not None:
                rows[:, d] = rows[:, d].round(column.decimals or 0)
        for at, d in enumerate(with_gaps):
            rows[drawn[:, len(columns) + at] > 0.5, d] = np.nan
        return np.random.default_rng(0).permutation(rows)

    return draw


def copula(train: Any, columns: Any) -> Draw:
    """Return a sampler by SDV's default synthesizer."""
    import numpy as np
    import pandas as pd
    from sdv.metadata import Metadata
    from sdv.single_table import GaussianCopulaSynthesizer

    frame = pd.DataFrame(train, columns=[column.name for column in columns])
    for column in columns:
        if column.categories:
            frame[column.name] = ["none" if np.isnan(k) else f"c{int(k)}" for k in frame[column.name]]
    metadata = Metadata.detect_from_dataframes({"table": frame}, infer_keys=None)
    for column in columns:
        kind = "categorical" if column.categories else "numerical"
        metadata.update_column(table_name="table", column_name=column.name, sdtype=kind)
    made = GaussianCopulaSynthesizer(metadata)
    made.fit({"table": frame})

    def draw(n: int) -> Any:
        drawn = made.sample(n)
        drawn = drawn["table"] if isinstance(drawn, dict) else drawn
        for column in columns:
            if column.categories:
                drawn[column.name] = [np.nan if text == "none" else float(str(text)[1:]) for text in drawn[column.name]]
        return drawn.to_numpy(float)

    return draw


def ours(data: Any, model: str, seed: int, settings: dict[str, Any]) -> Draw:
    """Return a sampler by one of our families."""
    import loglik
    from loglik.data.decode import as_written

    with tempfile.TemporaryDirectory() as folder:
        run = loglik.fit(model, data, seed=seed, progress=False, out=Path(folder) / "run", **settings)
    return lambda n: as_written(loglik.sample(run, n, seed=seed), run.spec.columns)[0].double().numpy()


def compare(
    file: Path, models: list[str], splits: int, settings: dict[str, Any], report: Callable[[str], None]
) -> None:
    """Report a row for each sampler of a table."""
    import numpy as np

    found: dict[str, list[list[float]]] = {}
    for seed in range(splits):
        table = read(file, seed)
        for name, fit in samplers_of(table, models, seed, settings).items():
            start = time.process_time()
            try:
                scores = scores_of(fit(), *table[1:])
            except ImportError as error:
                report(f"| {file.stem} | {name} | {error.name} is not installed | | | | |")
                continue
            found.setdefault(name, []).append([*scores, time.process_time() - start])
    for name, rows in found.items():
        auc, error, shape, trend, near, named, seconds = np.mean(rows, axis=0)
        if splits > 1:
            error = np.std([row[0] for row in rows], ddof=1) / len(rows) ** 0.5
        mark = f"{near:.0%}" + (f", memorises in {round(named * len(rows))} of {len(rows)}" if named else "")
        report(
            f"| {file.stem} | {name} | {auc:.3f} ± {error:.3f} | {shape:.1%} | {trend:.1%} | {mark} | {seconds:.0f} |"
        )


def samplers_of(table: Any, models: list[str], seed: int, settings: dict[str, Any]) -> dict[str, Callable[[], Draw]]:
    """Return what fits each sampler to a table's training rows."""
    import numpy as np

    data, train, _, columns = table
    random = np.random.default_rng(seed)
    samplers: dict[str, Callable[[], Draw]] = {
        model: lambda model=model: ours(data, model, seed, settings) for model in models
    }
    for by in ("BIC", "cross-validation") if len(train) < FEW else ("BIC",):
        samplers[f"scikit-learn's mixture, by {by}"] = lambda by=by: mixture(train, columns, by)
    samplers["SDV's Gaussian copula"] = lambda: copula(train, columns)
    samplers["training rows"] = lambda: lambda n: train[random.integers(0, len(train), n)]
    return samplers


def read(file: Path, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return a table's data, its training rows and its held-out rows as they are written, and their columns."""
    import torch

    from loglik.data import TableSettings, as_data
    from loglik.data.decode import as_written

    data = as_data(file, seed=seed, table=TableSettings(missing="indicator"))
    held = torch.cat([data.test.tensor(), data.validation.tensor()])
    (train, columns), (held, _) = (as_written(rows, data.spec.columns) for rows in (data.train.tensor(), held))
    return data, train.double().numpy(), held.double().numpy(), columns


def scores_of(draw: Draw, train: Any, held: Any, columns: Any) -> list[float]:
    """Return AUC, its error, column shapes, pair trends, the share of near-copies, and whether that is memorising."""
    import numpy as np
    import torch

    from loglik.tasks.fidelity import column_shapes, pair_trends, two_sample_test
    from loglik.tasks.privacy import COPIED, SURE, nearest_rows

    random = np.random.default_rng(0)
    real = random.permutation(held)[:MAX_ROWS]
    known = None if len(held) >= ENOUGH else random.permutation(train)[:MAX_ROWS]
    drawn = draw(len(real) + (0 if known is None else len(known)))
    test = two_sample_test(real, drawn, columns, training=known)
    shapes, pairs = column_shapes(held, drawn, columns), pair_trends(held, drawn, columns)
    check_scores(held, drawn, columns, shapes, pairs)
    near = nearest_rows(*map(torch.from_numpy, (drawn[:ENOUGH], train, real)), [len(c.categories) for c in columns])
    fraction, error = near.near_copies
    scores = np.mean(list(shapes.values())), np.mean(list(pairs.values()))
    return [test.auc, test.stderr, *scores, fraction, fraction - SURE * error > COPIED]


def check_scores(real: Any, drawn: Any, columns: Any, shapes: Any, pairs: Any) -> None:
    """Compare our scores with those of sdmetrics, where it is installed.

    Raises AssertionError where they differ.
    """
    try:
        from sdmetrics.column_pairs import ContingencySimilarity, CorrelationSimilarity
        from sdmetrics.single_column import KSComplement, TVComplement
    except ImportError:
        return
    import pandas as pd

    a, b = (pd.DataFrame(x, columns=[c.name for c in columns]) for x in (real, drawn))
    for column in columns:
        metric = TVComplement if column.categories else KSComplement
        theirs = metric.compute(a[column.name], b[column.name])
        assert abs(theirs - shapes[column.name]) < TOLERANCE, (column.name, theirs, shapes[column.name])
    numbers = {column.name for column in columns if not column.categories}
    for pair, score in pairs.items():
        x, y, binned = a[[*pair]], b[[*pair]], [name for name in pair if name in numbers]
        if len(binned) == 2:
            theirs = CorrelationSimilarity.compute(x, y)
        else:
            theirs = ContingencySimilarity.compute(x, y, continuous_column_names=binned or None)
        assert abs(theirs - score) < TOLERANCE, (pair, theirs, score)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--models", default="flow,autoregressive")
    parser.add_argument("--steps", type=int, help="of training; early stopping may come before")
    parser.add_argument("--splits", type=int, default=1, help="random splits into training and held-out rows")
    options = parser.parse_args()
    print("| table | sampler | AUC | column shapes | pair trends | near-copies | CPU s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    models = [model for model in options.models.split(",") if model]
    settings = {} if options.steps is None else {"max_steps": options.steps}
    for file in options.tables:
        compare(file, models, options.splits, settings, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
