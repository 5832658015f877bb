"""compare: train one density of each family on the same data, and put their scores into one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loglik.adapters import as_density
from loglik.data import as_data
from loglik.data.dataset import Data, Split
from loglik.data.image_settings import ImageSettings
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings
from loglik.devices import resolve_device
from loglik.evaluation import Result, StreamScores, baseline_scores, compress, evaluate_split, summary
from loglik.notebook import table
from loglik.plots import plot_bars
from loglik.recipes import RECIPES, Unsuitable, build, recipe
from loglik.runs import Run
from loglik.tasks import diagnose_latents
from loglik.training import NotFinite, TrainingSettings, fit, undertrained
from loglik.training.settings import with_device
from loglik.vae.diagnostics import Diagnosis

__all__ = [
    "Comparison",
    "Row",
    "best_density",
    "better_compressors",
    "by_score",
    "compare",
    "evaluate_run",
    "ranked",
    "scored_part",
]

BASELINE = "independent"
ELSEWHERE = "trained elsewhere: whether it has seen these rows is not known here"
OWN_TOKENS = "its own tokenizer: nats per token are not comparable, bits/byte are"
MAX_TOKENS = 2**18  # of a text, in the score at the end of a training


@dataclass(frozen=True)
class Row:
    """A row of a comparison.

    Attributes:
        result: the score.
        run: None for a compressor.
        latents: the diagnosis of a VAE's latents.
        comparable: the event is that of the other rows, not tokens of a tokenizer of its own.
    """

    result: Result
    run: Run | None = None
    latents: Diagnosis | None = None
    comparable: bool = True

    @property
    def conditional(self) -> bool:
        """Whether the number is log p(x | label)."""
        return (
            self.result.event == "x"
            and self.run is not None
            and not self.run.spec.inputs
            and self.run.density.conditional
        )


class Comparison(list[Row]):
    """The rows of a comparison, in the order of training; notebooks show it as a table, best first."""

    def __repr__(self) -> str:
        lines = (f"  {row.result.rank or '-'}  {summary(row.result)}" for row in by_score(self))
        return "\n".join([f"Comparison of {len(self)} rows", *lines])

    def _repr_html_(self) -> str:
        head = ("rank", "model", "nats", "standard error", "number", "bits/dim", "parameters", "seconds")
        rows = []
        for row in by_score(self):
            r = row.result
            bits = None if r.bits_per_dim is None else f"{r.bits_per_dim:.3f}"
            error = None if r.stderr is None else f"{r.stderr:.3f}"
            rows.append(
                (r.rank, r.model, f"{r.nats:.3f}", error, r.bound, bits, f"{r.params:,}", f"{r.train_seconds:.1f}")
            )
        return table(head, rows, caption="comparison")

    def plot(self, axes: Any = None) -> Any:
        """Draw the nats of the ranked rows with their standard errors, best on top; return matplotlib's axes."""
        rows = [row.result for row in by_score(self) if row.result.rank is not None]
        return plot_bars([r.model for r in rows], [r.nats for r in rows], [r.stderr for r in rows], axes)


def compare(
    data: Any,
    *,
    models: Sequence[str] | None = None,
    budget: float | str = 40.0,
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    label: str | None = None,
    target: str | Sequence[str] | None = None,
    device: str | None = None,
    progress: bool | None = None,
    with_: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Comparison:
    """Train each model for the same time and score all on the test split; the independent baseline comes first.

    Args:
        data: what `fit` accepts.
        models: families' names; every family that fits the data if None.
        budget: training time of each model: seconds, or `20s`, `1m`.
        out: a folder that receives one run for each model; None keeps the runs in memory.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        seed: of the splits, the initial weights and all noise.
        label: the label's column, where data is a table's path.
        target: the names of a table's columns to model given all others, in a list or a text with commas.
        device: where the models are trained and scored, as in `fit`.
        progress: show progress bars; on a terminal only if None.
        with_: models that are trained already, by their names in the table: runs, densities, and models of a library
            that `loglik.adapters` knows.
        report: called with one line for each model: its score, or why it is left out.
        **options: options of `fit`, for all models.

    Raises ValueError where an option is unknown, where this machine does not have the device, and where none of the
    requested models fits the data.
    """
    text, options = TextSettings.split_options(options)
    table, options = TableSettings.split_options(options)
    images, options = ImageSettings.split_options(options)
    beside = None if out is None else Path(out)
    dataset: Data = as_data(
        data, label=label, target=target, seed=seed, text=text, table=table, images=images, beside=beside
    )
    every = [name for name, known in RECIPES.items() if dataset.spec.kind == "table" or not known.tables_only]
    names = every if models is None else [BASELINE, *(m for m in models if m != BASELINE)]
    _check_options(names, options)
    with_device(device, options)
    fitting = _that_fit(names, dataset, report)
    if models is not None and fitting == [BASELINE] and list(models) != [BASELINE]:
        raise ValueError(f"none of {', '.join(models)} can take {dataset.spec.describe()}")

    others = {name: _others_run(name, model, dataset.spec, device) for name, model in (with_ or {}).items()}
    part = scored_part(dataset)
    how: dict[str, Any] = {"device": device, "progress": progress}
    rows: list[Row] = []
    baseline: Tensor | StreamScores | None = None
    for name in fitting:
        path = None if out is None else Path(out) / name.replace(":", "-")
        try:
            run = fit(name, dataset, out=path, label=label, max_time=budget, seed=seed, **how, **options)
        except NotFinite as error:
            report(f"{name} is left out: {error}")
            continue
        rows.append(evaluate_run(run, dataset, samples=samples, seed=seed, baseline=baseline))
        report(summary(rows[-1].result))
        if name == BASELINE:
            baseline = baseline_scores(run.density, part, dataset.spec)
            rows += [Row(result) for result in compress(part, dataset.spec, baseline)]
    for run in others.values():
        rows.append(_evaluate_other(run, data, dataset, samples=samples, seed=seed, baseline=baseline))
        report(summary(rows[-1].result))
    return Comparison(ranked(rows))


def _others_run(name: str, model: Any, spec: DataSpec, device: str | None) -> Run:
    """Return a model that was trained already as a run, whose model is its name in the table."""
    try:
        run = model if isinstance(model, Run) else Run(as_density(model, spec), spec, {"adapter": "memory"})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if device is not None:
        run.density.to(resolve_device(device))
    return replace(run, config={**run.config, "model": name})


def _evaluate_other(run: Run, source: Any, data: Data, **how: Any) -> Row:
    """Score a model that was trained elsewhere; on its own tokens, without a rank, if these are not the data's."""
    if run.spec == data.spec:
        row = evaluate_run(run, data, **how)
        return _noted(row, ELSEWHERE) if "adapter" in run.config else row
    if run.spec.kind != "text" or data.spec.kind != "text":
        raise ValueError(
            f"{run.model} is of other data: {run.spec.describe()}, and the data are {data.spec.describe()}"
        )
    row = evaluate_run(run, run.data_for(data.source or source), **{**how, "baseline": None})
    return replace(_noted(row, ELSEWHERE, OWN_TOKENS), comparable=False)


def _noted(row: Row, *notes: str) -> Row:
    return replace(row, result=replace(row.result, notes=(*row.result.notes, *notes)))


def _check_options(names: Sequence[str], options: dict[str, Any]) -> None:
    """Raise ValueError for options that a model does not have, before anything is trained."""
    for name in names:
        known = {*TrainingSettings.names(), *recipe(name).options}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"{name} has no option {unknown[0]!r}, and compare gives its options to every model: use models= "
                "to leave this one out, or fit to train one model"
            )


def _that_fit(names: Sequence[str], data: Data, report: Callable[[str], None]) -> list[str]:
    """Return the models that fit the data; report why others are left out."""
    fitting = []
    for name in names:
        try:
            build(name, data.spec)
        except Unsuitable as reason:
            report(f"{name} is left out: {reason}")
        else:
            fitting.append(name)
    return fitting


def evaluate_run(
    run: Run,
    data: Data,
    *,
    samples: int | None = None,
    seed: int = 0,
    baseline: Tensor | StreamScores | None = None,
) -> Row:
    """Score a run's density on `scored_part`, with notes on its training; the arguments are `evaluate_split`'s."""
    result = evaluate_split(
        run.density,
        scored_part(data),
        data.spec,
        model=run.model,
        samples=samples,
        seed=seed,
        train_seconds=run.train_seconds,
        steps=run.steps,
        baseline=baseline,
    )
    latents = diagnose_latents(run.density, data, data.scored_split, seed)
    notes = (*result.notes, undertrained(run, data, result.stderr), latents.collapse if latents else None)
    return Row(replace(result, notes=tuple(filter(None, notes))), run, latents)


def scored_part(data: Data) -> Split:
    """Return the split that trained models are scored on; of a long text the first 2¹⁸ tokens, where `evaluate` scores
    all.
    """
    return data.split(data.scored_split).limit_tokens(MAX_TOKENS)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Give the rows of log p(x) their rank by nats, best first, and keep the order of the rows.

    Numbers given the label have more information, so they are ranked only if all densities are conditional.
    """
    finite = [row for row in rows if row.result.event == "x" and row.comparable and not math.isnan(row.result.nats)]
    alike = [row for row in finite if not row.conditional]
    if not any(row.run is not None for row in alike):
        alike = finite
    ranks = {id(row): rank for rank, row in enumerate(by_score(alike), 1)}
    return [replace(row, result=replace(row.result, rank=ranks.get(id(row)))) for row in rows]


def by_score(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by their nats, best first; NaN last."""
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.result.nats) else -row.result.nats)


def best_density(rows: Sequence[Row]) -> Row | None:
    """Return the ranked density with the most nats; None if no density is ranked or there is only one row."""
    ranks = [row for row in rows if row.result.rank is not None and math.isfinite(row.result.nats)]
    densities = [row for row in ranks if row.run is not None]
    return by_score(densities)[0] if densities and len(rows) > 1 else None


def better_compressors(rows: Sequence[Row], best: Row) -> list[Row]:
    """Return the compressors with more nats than the best density, best first."""
    return [row for row in by_score(rows) if row.run is None and row.result.nats > best.result.nats]
