"""The main job: train one density of each family on the same data, and put them into one table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loglik.data import as_data
from loglik.data.dataset import Data, Split
from loglik.data.text import TextSettings
from loglik.data.windows import Windows
from loglik.density import Bound, Density
from loglik.diffusion import with_likelihood
from loglik.evaluation import (
    Result,
    RowScores,
    StreamScores,
    compress,
    evaluate_split,
    log_probs,
    row_scores,
    stream_scores,
)
from loglik.evaluation.format import share, with_error
from loglik.latents import diagnose_latents
from loglik.recipes import RECIPES, Unsuitable, build, recipe
from loglik.runs import Run
from loglik.training import NotFinite, TrainingSettings, fit, undertrained
from loglik.vae.diagnostics import Diagnosis

__all__ = [
    "Entry",
    "best_density",
    "better_compressors",
    "compare",
    "evaluate",
    "judge",
    "ranked",
    "scored",
    "summary",
    "write_json",
    "write_rows",
]

BASELINE = "independent"
TOKENS = 2**18


@dataclass(frozen=True)
class Entry:
    """A row of a comparison: a result, the run it comes from (a compressor has none), and a VAE's latents."""

    result: Result
    run: Run | None = None
    latents: Diagnosis | None = None

    @property
    def conditional(self) -> bool:
        """Whether the number is log p(x | label)."""
        return self.result.event == "x" and self.run is not None and self.run.density.conditional


def evaluate(
    model: Run | Density,
    data: Any = None,
    *,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    per_row: str | Path | None = None,
    method: str | None = None,
    steps: int | None = None,
) -> Result:
    """Score a density on data, in nats per example or token.

    Args:
        model: a run, or a density.
        data: what `fit` accepts, used whole; if None, the run's own data, if they can be found again.
        split: train, validation, test or all; if None, all of the data that are passed, or the run's own test split.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        per_row: a CSV file to write, with each example's row in the input, counted from 1, its log-probability in nats
            and the standard error of that, in the order of the input; see `row_scores` for the draws each row takes.
        method: of a diffusion: `vlb`, a lower bound, or `ode`, an estimate; the density's own if None.
        steps: of the method: T of a bound in T steps, continuous if None; or the steps of the solver.
    """
    run = model if isinstance(model, Run) else None
    density: Density = run.density if run else model  # type: ignore[assignment]
    if method is not None or steps is not None:
        density = with_likelihood(density, method or "vlb", steps)
    if run is None:
        if data is None:
            raise ValueError("give data: a density by itself does not know what it was trained on")
        held = as_data(data)
    else:
        held = run.data_for(data)
    split = split or ("test" if data is None else "all")
    part, rows = held.split(split), None
    if len(part) == 0 and data is None:
        raise ValueError(f'the run\'s {split} split is empty: use split="validation", or pass data')
    if per_row is not None and len(part):
        if isinstance(part.x, Windows):
            raise ValueError("a text has no rows: per_row= takes tables, images and arrays")
        rows = row_scores(density, part, samples=samples, seed=seed)
        write_rows(rows, part.index, Path(per_row))
    elif samples is None and method is not None and density.bound is Bound.ESTIMATE:
        samples = 1
    return evaluate_split(
        density,
        part,
        held.spec,
        rows=rows,
        model=run.model if run else type(density).__name__.lower(),
        samples=samples,
        seed=seed,
        train_seconds=run.train_seconds if run else 0.0,
        steps=run.steps if run else 0,
    )


def compare(
    data: Any,
    *,
    models: Sequence[str] | None = None,
    budget: float | str = 40.0,
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    label: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> list[Entry]:
    """Train each model for the same time and score all on the test split; the independent baseline comes first.

    Args:
        data: as `fit` takes it.
        models: families' names; every family that can take the data if None.
        budget: training time of each model: seconds, or `20s`, `1m`.
        out: a folder that receives one run for each model; None keeps them in memory.
        say: called with a line where a model is left out, and why.
        **options: as `fit` takes them, for every model alike.

    Raises ValueError where none of the named models can take the data.
    """
    text, options = TextSettings.split_options(options)
    held: Data = as_data(data, label=label, seed=seed, text=text, beside=None if out is None else Path(out))
    part = scored(held)
    chosen = list(RECIPES) if models is None else [BASELINE, *(m for m in models if m != BASELINE)]
    for name in chosen:
        known = {*TrainingSettings.names(), *recipe(name).options}  # what is unknown fails before anything is trained
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"{name} has no option {unknown[0]!r}, and compare gives its options to every model: use models= "
                "to leave this one out, or fit to train one model"
            )
    fitting: list[str] = []
    for name in chosen:
        try:
            build(name, held.spec)
        except Unsuitable as reason:
            say(f"{name} is left out: {reason}")
        else:
            fitting.append(name)
    if models is not None and fitting == [BASELINE] and list(models) != [BASELINE]:
        raise ValueError(f"none of {', '.join(models)} can take {held.spec.describe()}")

    rows: list[Entry] = []
    baseline: Tensor | StreamScores | None = None
    for name in fitting:
        path = None if out is None else Path(out) / name.replace(":", "-")
        try:
            run = fit(name, held, out=path, label=label, max_time=budget, seed=seed, progress=progress, **options)
        except NotFinite as error:
            say(f"{name} is left out: {error}")
            continue
        rows.append(judge(run, held, samples=samples, seed=seed, baseline=baseline))
        say(summary(rows[-1].result))
        if name == BASELINE:
            if isinstance(part.x, Windows):
                baseline = stream_scores(run.density, part.x.stream, held.spec)
            else:
                baseline = log_probs(run.density, part)
            rows += [Entry(result) for result in compress(part, held.spec, baseline)]
    return ranked(rows)


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Give the rows of log p(x) their rank by nats, best first, and keep the order of the entries.

    Numbers given the label know more, so they are ranked only if all densities have it.
    """
    rows = [e for e in entries if e.result.event == "x" and not math.isnan(e.result.nats)]
    alike = [e for e in rows if not e.conditional]
    if not any(e.run is not None for e in alike):
        alike = rows
    places = {id(e): place for place, e in enumerate(by_score(alike), 1)}
    return [replace(e, result=replace(e.result, rank=places.get(id(e)))) for e in entries]


def by_score(entries: Sequence[Entry]) -> list[Entry]:
    """Sort rows by their nats, best first; NaN last."""
    return sorted(entries, key=lambda e: math.inf if math.isnan(e.result.nats) else -e.result.nats)


def best_density(entries: Sequence[Entry]) -> Entry | None:
    """Return the ranked density with the most nats; None if there is none or nothing to compare it with."""
    ranks = [e for e in entries if e.result.rank is not None and math.isfinite(e.result.nats)]
    densities = [e for e in ranks if e.run is not None]
    return by_score(densities)[0] if densities and len(entries) > 1 else None


def better_compressors(entries: Sequence[Entry], best: Entry) -> list[Entry]:
    """Return the compressors with more nats than the best density, best first."""
    return [e for e in by_score(entries) if e.run is None and e.result.nats > best.result.nats]


def judge(
    run: Run,
    data: Data,
    *,
    samples: int | None = None,
    seed: int = 0,
    baseline: Tensor | StreamScores | None = None,
) -> Entry:
    """Score a run's density on the held-out split, with notes on its training; the arguments are `evaluate_split`'s."""
    result = evaluate_split(
        run.density,
        scored(data),
        data.spec,
        model=run.model,
        samples=samples,
        seed=seed,
        train_seconds=run.train_seconds,
        steps=run.steps,
        baseline=baseline,
    )
    latents = diagnose_latents(run.density, data, data.held_out, seed)
    notes = (undertrained(run, data, result.stderr), latents.collapse if latents else None)
    return Entry(replace(result, notes=tuple(filter(None, notes))), run, latents)


def scored(data: Data) -> Split:
    """What a training is judged on at its end: the held-out split, of a long text its first 2¹⁸ tokens (`evaluate`
    takes all)."""
    split = data.split(data.held_out)
    if isinstance(split.x, Windows) and len(split.x.stream) > TOKENS:
        return Split(Windows(split.x.stream.cut(0, TOKENS), split.x.length, split.x.stride))
    return split


def summary(result: Result) -> str:
    """One line for a model that is done.

    >>> summary(Result(model="flow", bound="lower", nats=-80.0, bits_per_dim=1.8, stderr=0.5, n=100, steps=10))
    'flow: -80.000 ± 0.500 nats (lower), 1.800 bits/dim, 10 steps in 0.0 s'
    """
    least, per = (4, " a token") if result.unit == "token" else (3, "")
    bits = "" if result.bits_per_dim is None else f", {result.bits_per_dim:.3f} bits/dim"
    if result.bits_per_byte is not None:
        bits = f", {result.bits_per_byte:.3f} bits/byte"
    if result.perplexity is not None:
        bits = f", perplexity {result.perplexity:.3f}{bits}"
    accuracy = "" if result.accuracy is None else f", accuracy {share(result.accuracy, result.accuracy_interval)}"
    return (
        f"{result.model}: {with_error(result.nats, result.stderr, least)} nats{per} ({result.bound}){bits}{accuracy}, "
        f"{result.steps} steps in {result.train_seconds:.1f} s"
    )


def write_rows(rows: RowScores, index: Tensor | None, path: Path) -> None:
    """Write each example's row in the input, from 1, its log-probability in nats and the standard error of that."""
    places = range(len(rows.nats)) if index is None else index.tolist()
    scores = sorted(zip(places, rows.nats.tolist(), rows.stderr.tolist(), strict=True))
    lines = [f"{place + 1},{nats!r},{stderr!r}" for place, nats, stderr in scores]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["row,nats,stderr", *lines]) + "\n", encoding="utf-8")


def write_json(results: Sequence[Result], path: Path) -> None:
    """A list of objects, one a model; numbers that are not finite become null."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.to_dict().items()}
        for r in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
