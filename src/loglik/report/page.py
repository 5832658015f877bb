"""One self-contained HTML page for a comparison or a run: what is shown, and from where.

The page needs no network: plots and pictures are inside it. Its look is `page.html.jinja`, its plots are
`figures`, its tables' cells `numbers`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loglik.classification.calibration import confusion_matrix, reliability
from loglik.comparison import Row, best_density, better_compressors, by_score, ranked
from loglik.data.dataset import Data
from loglik.data.spec import Column
from loglik.density import Density
from loglik.evaluation.format import decimals
from loglik.evaluation.scores import evaluating
from loglik.report import diffusion, figures
from loglik.report.latents import view_latents
from loglik.report.numbers import Row as TableRow
from loglik.report.numbers import Unit, count, duration, number, percent, plus_minus, unit_of
from loglik.report.samples import examples, image_grid, text_of
from loglik.runs import Run
from loglik.tasks.sample import draw

__all__ = ["Picture", "address", "render", "write_report"]

COLUMNS = 24  # of a table, that are drawn
KINDS = {"exact": "exact", "lower": "lower bound", "estimate": "estimate"}


@dataclass(frozen=True)
class Picture:
    """An image inside the page: its data as an address, what it shows, and a caption."""

    source: str
    alt: str
    caption: str = ""


def write_report(
    path: Path, data: Data, entries: Sequence[Row], *, title: str, seed: int = 0, split: str = "test"
) -> Path:
    """Write a comparison, or a single run, as one HTML file, and give its path back.

    Args:
        path: the file to write; one that is there is replaced.
        data: the data set; examples of `split` stand beside the samples.
        entries: the rows. Where there are several, the first is the baseline the others are held against.
        title: the heading.
        seed: of the samples drawn for the page.
        split: the split that the results were computed on.

    Raises:
        ValueError: where there are no entries.
    """
    if not entries:
        raise ValueError("a report needs at least one entry, got none")
    path.write_text(render("report", _content(data, entries, title, seed, split)), encoding="utf-8")
    return path


def render(room: str, content: dict[str, Any]) -> str:
    """The page.html.jinja of a room, which may include the report's style.html.jinja."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader("loglik", room), PackageLoader("loglik", "report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(content)


def _content(data: Data, entries: Sequence[Row], title: str, seed: int, split: str) -> dict[str, Any]:
    """All that the template shows."""
    entries = ranked(entries)
    generative = [e for e in entries if e.result.event == "x"]
    best = best_density(generative)
    unit = unit_of(data.spec, [e.result for e in generative])
    baseline = entries[0] if len(generative) > 1 and entries[0] is generative[0] else None
    drawing = [(e.result.model, e.run) for e in generative if e.run is not None and _can_draw(e.run, data)]
    sizes = {name: f"{data.split(name).size:,}" for name in ("train", "validation", "test")}
    return {
        "title": title,
        "data": data,
        "description": data.spec.describe(),
        "sizes": sizes,
        "split": split,
        "items": f"{data.train.unit}s",
        "each": data.train.unit,
        "n": f"{entries[0].result.n:,}",
        "unit": unit,
        "rows": _rows(by_score(generative), unit, baseline),
        "baseline": baseline.result.model if baseline else None,
        "better": [
            row for e in (better_compressors(generative, best) if best else []) for row in _rows([e], unit, None)
        ],
        "notes": [(e.result.model, note) for e in by_score(generative) for note in e.result.notes],
        "bars": _bars(generative, unit, baseline),
        "terms": _terms(generative),
        "curves": _curves(generative, unit, baseline, data.train.units_per_example),
        "pictures": _image_samples(data, drawing, seed, split) if data.spec.kind == "image" else [],
        "marginals": _marginals(data, drawing, seed, split) if data.spec.kind in ("table", "array") else {},
        "columns": (min(COLUMNS, data.spec.dims), data.spec.dims),
        "windows": _windows(data, drawing, seed, split) if data.spec.kind == "text" else {},
        "latents": _latents(data, drawing, seed, split),
        "diffusions": _diffusions(data, drawing, seed, split),
        "classifiers": [_classifier(e, data, split) for e in entries if e.result.event == "y"],
        "compressed": any(_is_code_length(e, baseline) for e in generative),
        "conditional": any(e.conditional for e in generative),
        "classes": len(data.spec.classes),
        "guess": -math.log(max(len(data.spec.classes), 1)),
        "ink": figures.INK,
        "number": number,
    }


def _is_code_length(entry: Row, baseline: Row | None) -> bool:
    return entry.run is None and entry is not baseline


def _can_draw(run: Run, data: Data) -> bool:
    return not run.density.conditional or bool(data.spec.classes)


def _terms(entries: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Per bound its terms and their sum, which is the nats of its row."""
    found = {}
    for entry in by_score(entries):
        r = entry.result
        if r.terms:
            digits = decimals(r.stderr, 2)
            every = {name: number(nats, digits) for name, nats in r.terms.items()}
            found[r.model] = every | {"sum": number(sum(r.terms.values()), digits)}
    return found


def _rows(entries: Sequence[Row], unit: Unit, baseline: Row | None) -> list[TableRow]:
    best = best_density(entries)
    rows = []
    for entry in entries:
        r = entry.result
        notes = ["given the label"] if entry.conditional else []
        if r.bound != "exact" and entry.run is not None:
            notes.append(f"{r.samples:,} sample" + "s" * (r.samples != 1))
        notes += [note.split(":")[0] for note in r.notes]
        trained = r.steps > 0
        error = None if r.stderr is None else r.stderr * abs(unit.per_nat)
        rows.append(
            TableRow(
                rank="" if r.rank is None else str(r.rank),
                model=r.model,
                kind="code length" if _is_code_length(entry, baseline) else KINDS.get(r.bound, r.bound),
                note=", ".join(notes),
                in_unit=plus_minus(r.nats * unit.per_nat, error),
                nats=plus_minus(r.nats, r.stderr),
                perplexity=number(r.perplexity),
                gain="–" if entry is baseline else plus_minus(r.gain, r.gain_stderr, signed=True),
                params=count(r.params) if r.params else "–",
                time=duration(r.train_seconds) if r.train_seconds else "–",
                steps=f"{r.steps:,}" if trained else "–",
                speed="–" if r.samples_per_second is None else f"{float(f'{r.samples_per_second:.3g}'):,.10g}",
                best=entry is best,
            )
        )
    return rows


def _bars(entries: Sequence[Row], unit: Unit, baseline: Row | None) -> Picture | None:
    finite = [e for e in by_score(entries) if math.isfinite(e.result.nats)]
    if len(finite) < 2:
        return None
    plot = figures.bars(
        [
            figures.Bar(
                f"{r.rank}  {r.model}" if r.rank else r.model,
                r.nats * unit.per_nat,
                (r.stderr or 0.0) * abs(unit.per_nat),
                may_break=_is_code_length(e, baseline),
            )
            for e, r in ((e, e.result) for e in finite)
        ],
        unit=unit.name,
        baseline=baseline.result.nats * unit.per_nat if baseline else None,
        from_zero=not unit.in_nats,
    )
    return _plot(plot, f"{unit.name} of each model, with standard errors")


def _curves(entries: Sequence[Row], unit: Unit, baseline: Row | None, per: int = 1) -> list[Picture]:
    """A panel a model, on one range: from the best value seen to a little past the baseline. A history is in nats per
    example, which has `per` of what the unit is for."""
    runs = [(e.result.model, e.run) for e in entries if e.run is not None and len(e.run.history) > 1]
    lines = {name: _history(run, unit.per_nat / per) for name, run in runs}
    level = baseline.result.nats * unit.per_nat if baseline else None
    seen = [
        np.array([v for v in values if math.isfinite(v)])
        for panel in lines.values()
        for values in (panel["train"], panel["validation"])
    ]
    seen = [values for values in seen if len(values)]
    limits = None
    if seen:
        # the first values of a run may lie far from all others: show the range that the runs settle in
        usual = [*(np.median(v).item() for v in seen), *([] if level is None else [level])]
        best = min(v.min().item() for v in seen) if unit.per_nat < 0 else max(v.max().item() for v in seen)
        low, high = min(*usual, best), max(*usual, best)
        pad = 0.06 * (high - low) or 0.5
        limits = (low - pad, high + pad)
    return [
        _plot(
            figures.curves(name, panel.pop("seconds"), panel, unit=unit.name, baseline=level, limits=limits),
            f"training of {name}: {unit.name} against seconds",
        )
        for name, panel in lines.items()
    ]


def _history(run: Run, per_nat: float) -> dict[str, list[float]]:
    def column(key: str, factor: float = 1.0) -> list[float]:
        return [float(row.get(key, math.nan)) * factor for row in run.history]

    return {
        "seconds": column("time"),
        "train": column("train_nats", per_nat),
        "validation": column("validation_nats", per_nat),
    }


def _image_samples(data: Data, drawing: Sequence[tuple[str, Run]], seed: int, split: str) -> list[Picture]:
    """A grid of data and a grid of samples for each model; a class a column where labels are given."""
    channels, height, width = data.spec.event_shape
    if channels not in (1, 3) or not drawing:
        return []
    classes, side = len(data.spec.classes), max(height, width)
    across = 8 if side <= 32 else 6 if side <= 64 else 4
    if side <= 32 and 6 <= classes <= 12:
        across = classes
    n = across * min(across, 64 // across)
    real = examples(data.split(split), n, classes=classes, seed=seed)
    span = (0.0, data.spec.levels - 1.0) if data.spec.levels else (float(real.min()), float(real.max()))
    grids = [("data", f"the {split} split", real)]
    for name, run in drawing:
        note = "samples, given the classes in turn" if run.density.conditional else "samples"
        grids.append((name, note, draw(run.density, data.spec, n, seed=seed)))
    return [
        Picture(_png(image_grid(x, data.spec, columns=across, span=span)), f"{name}: {note}", f"{name}, {note}")
        for name, note, x in grids
    ]


def _marginals(data: Data, drawing: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[Picture]]:
    """Per model the first `COLUMNS` columns of data and samples, and the first two against each other."""
    spec = data.spec
    columns = spec.columns or tuple(
        Column(name=f"dim {i}", type="integer" if spec.levels else "numeric") for i in range(spec.dims)
    )
    real = _flat(examples(data.split(split), 2000, classes=0, seed=seed))
    panels = {}
    for name, run in drawing:
        drawn = _flat(draw(run.density, spec, 512 if spec.dims <= 1024 else 64, seed=seed))
        panels[name] = [
            _plot(figures.marginal(c, real[:, i], drawn[:, i]), f"{c.name}: data and samples of {name}")
            for i, c in enumerate(columns[:COLUMNS])
        ]
        if len(columns) > 1 and not (columns[0].categories or columns[1].categories):
            plot = figures.scatter(real[:400, :2], drawn[:400, :2], (columns[0].name, columns[1].name))
            alt = f"{columns[0].name} and {columns[1].name}: data and samples of {name}"
            panels[name].append(_plot(plot, alt))
    return panels


def _windows(data: Data, drawing: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[str]]:
    """A few windows of text: of the data, then of each model."""
    if not drawing:
        return {}
    texts = {"data": examples(data.split(split), 4, classes=0, seed=seed)}
    texts |= {name: draw(run.density, data.spec, 4, seed=seed) for name, run in drawing}
    return {name: [text_of(row.flatten(), data.spec) for row in x] for name, x in texts.items()}


def _latents(data: Data, drawing: Sequence[tuple[str, Run]], seed: int, split: str) -> list[dict[str, Any]]:
    """What is shown of the latents of each density that has some."""
    shown = []
    for name, run in drawing:
        view = view_latents(run.density, data.spec, data.split(split), seed=seed)
        if view is not None:
            plots = [Picture(address(plot), f"{name}: {note}", note) for plot, note in view.plots]
            grids = [Picture(_png(grid), f"{name}: {note}", note) for grid, note in view.grids]
            shown.append({"model": name, "lines": view.lines, "plots": plots, "grids": grids})
    return shown


def _diffusions(data: Data, drawing: Sequence[tuple[str, Run]], seed: int, split: str) -> dict[str, list[Picture]]:
    """Per diffusion the bound over the noise, and strips of images."""
    found = {}
    for name, run in drawing:
        plot = diffusion.bound_by_noise(run.density, data, seed, split)
        if plot is not None:
            bound = Picture(address(plot), f"the bound of {name} over the noise", "what each noise level costs")
            strips = diffusion.strips(run.density, data, seed, split)
            found[name] = [bound, *(Picture(_png(pixels), f"{name}: {alt}", note) for pixels, alt, note in strips)]
    return found


def _classifier(entry: Row, data: Data, split: str) -> dict[str, Any]:
    """The row and the pictures of a classifier, whose number is log p(y | x)."""
    r = entry.result
    content: dict[str, Any] = {
        "model": r.model,
        "accuracy": percent(r.accuracy, r.accuracy_interval),
        "nats": plus_minus(r.nats, r.stderr),
        "error": percent(r.calibration_error, r.calibration_interval),
        "params": count(r.params) if r.params else "–",
        "time": duration(r.train_seconds) if r.train_seconds else "–",
        "steps": f"{r.steps:,}" if r.steps else "–",
        "notes": r.notes,
        "pictures": [],
    }
    if entry.run is None:
        return content
    part, pictures = data.split(split), content["pictures"]
    if part.y is not None and hasattr(entry.run.density, "probabilities"):
        p = _probabilities(entry.run.density, part.tensor())
        matrix = confusion_matrix(p, part.y).numpy()
        table = reliability(p, part.y)
        names = data.spec.classes or tuple(map(str, range(len(matrix))))
        note = "Confusion: examples of the row's class predicted as the column's; at the right, their accuracy."
        pictures.append(Picture(address(figures.confusion(matrix, names)), f"confusion matrix of {r.model}", note))
        note = "Reliability: accuracy at each confidence, with 95 % intervals; expected calibration error "
        note += f"{percent(table.error, table.error_interval)}."
        pictures.append(Picture(address(figures.reliability_diagram(table)), f"reliability of {r.model}", note))
    if len(entry.run.history) > 1:
        panel = _history(entry.run, 1.0)
        plot = figures.curves(r.model, panel.pop("seconds"), panel, unit="nats per label", baseline=None, limits=None)
        note = "Training (grey) and validation (blue)."
        pictures.append(Picture(address(plot), f"training of {r.model}: nats per label against seconds", note))
    return content


def _probabilities(density: Density, x: Tensor, at_once: int = 1024) -> Tensor:
    """p(y | x) for every row of x: (N, K)."""
    probabilities: Any = density.probabilities
    with evaluating(density, 0) as device:
        return torch.cat([probabilities(part.to(device)).cpu() for part in x.split(at_once)])


def _flat(x: Tensor) -> np.ndarray:
    return x.double().flatten(1).numpy()


def _plot(svg: str, alt: str) -> Picture:
    return Picture(address(svg), alt)


def address(text: str) -> str:
    """An SVG as the address of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
