"""Synthetic tables: our samplers, scikit-learn's mixture and SDV's default synthesizer, by one classifier.

`python benchmarks/synthetic.py TABLE.csv ... [--seconds 120] [--models flow,autoregressive]` prints the AUC of the
two-sample classifier, the column shapes and the pair trends for each table and sampler. All see the same training
rows, and are compared with the same held-out rows, or with all rows where fewer than 1,000 are held out.
scikit-learn's mixture has full covariances, codes of categories, the number of components with the lowest BIC, and
rounded values within the range of the data. SDV's GaussianCopulaSynthesizer runs where `sdv` is installed. With
`sdmetrics` installed, our scores are checked against it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
COMPONENTS = (1, 2, 5, 10, 20, 50)
MAX_ROWS = 3000


def mixture(train: Any, columns: Any, n: int) -> Any:
    """Return rows of scikit-learn's mixture; a missing value is a variable of its own."""
    import numpy as np
    from sklearn.mixture import GaussianMixture

    gaps = np.isnan(train)
    known = np.where(gaps, np.nanmean(train, 0), train)
    with_gaps = np.flatnonzero(gaps.any(0))
    x = np.concatenate([known, gaps[:, with_gaps]], 1)
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    z = (x - mean) / std
    count = [k for k in COMPONENTS if k * 5 <= len(z)]
    best = min((GaussianMixture(k, random_state=0).fit(z) for k in count), key=lambda found: found.bic(z))
    drawn = best.sample(n)[0] * std + mean
    rows = np.clip(drawn[:, : len(columns)], np.nanmin(train, 0), np.nanmax(train, 0))
    for d, column in enumerate(columns):
        if column.type != "numeric" or column.decimals is not None:
            rows[:, d] = rows[:, d].round(column.decimals or 0)
    for at, d in enumerate(with_gaps):
        rows[drawn[:, len(columns) + at] > 0.5, d] = np.nan
    return np.random.default_rng(0).permutation(rows)


def copula(train: Any, columns: Any, n: int) -> Any:
    """Return rows of SDV's default synthesizer."""
    import numpy as np
    import pandas as pd
    from sdv.metadata import Metadata
    from sdv.single_table import GaussianCopulaSynthesizer

    frame = pd.DataFrame(train, columns=[column.name for column in columns])
    for column in columns:
        if column.categories:
            names = frame[column.name].map(lambda k: None if np.isnan(k) else f"c{int(k)}")
            frame[column.name] = names
    metadata = Metadata.detect_from_dataframes({"table": frame}, infer_keys=None)
    for column in columns:
        kind = "categorical" if column.categories else "numerical"
        metadata.update_column(table_name="table", column_name=column.name, sdtype=kind)
    made = GaussianCopulaSynthesizer(metadata)
    made.fit({"table": frame})
    drawn = made.sample(n)
    drawn = drawn["table"] if isinstance(drawn, dict) else drawn
    for column in columns:
        if column.categories:
            drawn[column.name] = drawn[column.name].map(lambda text: np.nan if text is None else float(str(text)[1:]))
    return drawn.to_numpy(float)


def compare(file: Path, models: list[str], seconds: float, report: Callable[[str], None]) -> None:
    """Report a row for each sampler of a table."""
    import numpy as np
    import torch

    import loglik
    from loglik.data import TableSettings, as_data
    from loglik.data.decode import as_written
    from loglik.tasks.fidelity import column_shapes, pair_trends, two_sample_test

    data = as_data(file, table=TableSettings(missing="indicator"))
    held = torch.cat([data.test.tensor(), data.validation.tensor()])
    chosen = held if len(held) >= 1000 else data.split("all").tensor()
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:MAX_ROWS]]
    (real, columns), (train, _) = (as_written(rows, data.spec.columns) for rows in (chosen, data.train.tensor()))
    real, train = real.double().numpy(), train.double().numpy()

    def ours(model: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            run = loglik.fit(model, data, max_time=seconds, progress=False, out=Path(folder) / "run")
        drawn = loglik.sample(run, len(real), seed=1)
        return as_written(drawn, run.spec.columns)[0].double().numpy()

    samplers: dict[str, Callable[[], Any]] = {model: lambda model=model: ours(model) for model in models}
    samplers["scikit-learn's mixture"] = lambda: mixture(train, columns, len(real))
    samplers["SDV"] = lambda: copula(train, columns, len(real))
    for name, draw in samplers.items():
        try:
            drawn = draw()
        except ImportError as error:
            report(f"| {file.stem} | {name} | {error.name} is not installed | | |")
            continue
        test = two_sample_test(real, drawn, columns)
        shapes, pairs = column_shapes(real, drawn, columns), pair_trends(real, drawn, columns)
        check_scores(real, drawn, columns, shapes, pairs)
        scores = f"{np.mean(list(shapes.values())):.1%} | {np.mean(list(pairs.values())):.1%}"
        report(f"| {file.stem} | {name} | {test.auc:.3f} ± {test.stderr:.3f} | {scores} |")


def check_scores(real: Any, drawn: Any, columns: Any, shapes: Any, pairs: Any) -> None:
    """Compare our scores with those of sdmetrics, where it is installed."""
    try:
        from sdmetrics.column_pairs import ContingencySimilarity, CorrelationSimilarity
        from sdmetrics.single_column import KSComplement, TVComplement
    except ImportError:
        return
    import pandas as pd

    a, b = (pd.DataFrame(x, columns=[c.name for c in columns]) for x in (real, drawn))
    for column in columns:
        metric = TVComplement if column.categories else KSComplement
        theirs = metric.compute(a[column.name].dropna(), b[column.name].dropna())
        assert abs(theirs - shapes[column.name]) < 1e-3, (column.name, theirs, shapes[column.name])
    kinds = {column.name: bool(column.categories) for column in columns}
    for (one, other), score in pairs.items():
        metric = ContingencySimilarity if kinds[one] and kinds[other] else CorrelationSimilarity
        if kinds[one] == kinds[other]:
            theirs = metric.compute(a[[one, other]], b[[one, other]])
            assert abs(theirs - score) < 1e-3, (one, other, theirs, score)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--models", default="flow,autoregressive")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of each")
    options = parser.parse_args()
    print("| table | sampler | AUC | column shapes | pair trends |\n|---|---|---:|---:|---:|")
    models = [model for model in options.models.split(",") if model]
    for file in options.tables:
        compare(file, models, options.seconds, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
