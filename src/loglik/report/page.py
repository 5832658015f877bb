"""A comparison or a run as one self-contained HTML page: write it, and collect what it shows.

The template is `page.html.jinja`, and `page.js` draws its charts. Each section has a file: `likelihoods`, `extremes`,
`sample_pictures`, `latents`, `diffusion`, `classifiers` and `targets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loglik import files
from loglik.comparison import Row, best_density, better_compressors, by_score, ranked
from loglik.data.dataset import Data
from loglik.report.chart import script_json
from loglik.report.classifiers import classifier_content
from loglik.report.diffusion import bound_by_noise, strips
from loglik.report.extremes import view_examples
from loglik.report.html import CHARTS, CONTROLS, png_picture, render, scripts
from loglik.report.latents import view_latents
from loglik.report.likelihood_figures import AGAINST
from loglik.report.likelihoods import bar_chart, bound_terms, curve_charts, is_code_length, table_rows
from loglik.report.numbers import TableRow, Unit, number, unit_of
from loglik.report.sample_pictures import image_samples, text_windows, view_columns
from loglik.report.synthetic import synthetic_content
from loglik.report.targets import target_content
from loglik.runs import Run
from loglik.tasks import SyntheticReport

__all__ = ["write_report"]


def write_report(
    path: Path,
    data: Data,
    rows: Sequence[Row],
    *,
    title: str,
    seed: int = 0,
    split: str = "test",
    synthetic: SyntheticReport | None = None,
) -> Path:
    """Write a comparison, or a single run, as one HTML file; return its path.

    Args:
        path: the file to write; an existing file is replaced.
        data: the data set; examples of `split` stand beside the samples.
        rows: the rows of the comparison. If there are several, the first is the baseline.
        title: the heading.
        seed: of the samples drawn for the page.
        split: the split that the results were computed on.
        synthetic: fidelity and privacy of a single run's samples.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("a report needs at least one row, got none")
    content = _content(data, rows, title, seed, split)
    page = render("report", content | {"synthetic": synthetic_content(synthetic)})
    with files.naming(path):
        path.write_text(page, encoding="utf-8")
    return path


def _content(data: Data, rows: Sequence[Row], title: str, seed: int, split: str) -> dict[str, Any]:
    """Return the values that the template shows."""
    rows = ranked(rows)
    generative = [row for row in rows if row.result.event == "x"]
    best = best_density(generative)
    unit = unit_of(data.spec, [row.result for row in generative])
    baseline = rows[0] if len(generative) > 1 and rows[0] is generative[0] else None
    runs = [(row.result.model, row.run) for row in generative if row.run is not None and _can_draw(row.run, data)]
    kind = data.spec.kind
    scored = [(row.result.model, row.run) for row in by_score(generative) if row.run is not None]
    table = table_rows(by_score(generative), unit, baseline)
    spread, extremes = view_examples(data, scored, seed, split)
    return {
        "title": title,
        "data": data,
        "description": data.spec.describe(),
        "sizes": {name: f"{data.split(name).size:,}" for name in ("train", "validation", "test")},
        "split": split,
        "items": f"{data.train.unit}s",
        "each": data.train.unit,
        "n": f"{rows[0].result.n:,}",
        "unit": unit,
        "rows": table,
        "single": _verdict(table[0], unit) if len(table) == 1 else "",
        "kinds": {row.kind for row in table},
        "baseline": baseline.result.model if baseline else None,
        "better": table_rows(better_compressors(generative, best), unit, None) if best else [],
        "notes": [(row.result.model, note) for row in by_score(generative) for note in row.result.notes],
        "bars": bar_chart(generative, unit, baseline),
        "terms": bound_terms(generative),
        "curves": curve_charts(generative, unit, baseline, data.train.units_per_example),
        "pictures": image_samples(data, runs, seed, split) if kind == "image" else [],
        "view": view_columns(data, [(n, run) for n, run in scored if _can_draw(run, data)], seed, split)
        if kind in ("table", "array")
        else None,
        "windows": text_windows(data, runs, seed, split) if kind == "text" else {},
        "latents": _latents(data, runs, seed, split),
        "diffusions": _diffusions(data, runs, seed, split),
        "classifiers": [classifier_content(row, data, split) for row in rows if row.result.event == "y"],
        "targets": target_content(generative, data, split, seed),
        "compressed": any(is_code_length(row, baseline) for row in generative),
        "conditional": any(row.conditional for row in generative),
        "classes": len(data.spec.classes),
        "guess": -math.log(max(len(data.spec.classes), 1)),
        "against": [(name, script_json(change)) for name, change in AGAINST],
        "histogram": spread,
        "extremes": extremes,
        "scripts": scripts(*CHARTS, CONTROLS),
        "number": number,
    }


def _verdict(row: TableRow, unit: Unit) -> str:
    """Return what a single run scores, in words."""
    value = f"{row.in_unit} {unit.name}"
    note = f", {row.note}" if row.note else ""
    return f"{row.model} scores {value} ({row.kind}{note})."


def _can_draw(run: Run, data: Data) -> bool:
    if data.spec.inputs:  # the section on targets shows predictions instead
        return False
    return not run.density.conditional or bool(data.spec.classes)


def _latents(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> list[dict[str, Any]]:
    """Return the lines, charts and pictures of each density with latents."""
    shown = []
    for name, run in runs:
        view = view_latents(name, run.density, data.spec, data.split(split), seed=seed)
        if view is not None:
            grids = [png_picture(grid, f"{name}: {caption}", caption) for grid, caption in view.grids]
            shown.append({"model": name, "lines": view.lines, "charts": view.charts, "grids": grids})
    return shown


def _diffusions(data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str) -> list[dict[str, Any]]:
    """Return, per diffusion, the bound over the noise level, strips of images, and the frames from noise to samples."""
    shown = []
    for name, run in runs:
        bound = bound_by_noise(name, run.density, data, seed, split)
        if bound is not None:
            images, frames, caption = strips(run.density, data, seed, split)
            shown.append(
                {
                    "model": name,
                    "bound": bound,
                    "strips": [png_picture(pixels, f"{name}: {alt}", note) for pixels, alt, note in images],
                    "frames": [(png_picture(pixels, f"{name}: samples at {label}"), label) for pixels, label in frames],
                    "caption": caption,
                }
            )
    return shown
