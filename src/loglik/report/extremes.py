"""The report's section on single examples: how their nats are spread, and the most and the least likely ones."""

from __future__ import annotations

import math
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from loglik.data.dataset import Data, Split
from loglik.data.decode import as_text, decode
from loglik.data.spec import DataSpec
from loglik.density import Bound
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.scores import log_probs
from loglik.report.cells import Cells, cell_log_probs
from loglik.report.chart import Chart
from loglik.report.html import png_source
from loglik.report.likelihood_figures import histogram
from loglik.report.numbers import number
from loglik.report.sample_pictures import columns_of
from loglik.report.samples import image_grid
from loglik.runs import Run

__all__ = ["Cell", "Example", "Extremes", "view_examples"]

MAX_SCORED = 400  # examples, fewer of many dimensions
SHOWN = {"image": 8, "table": 6, "array": 6, "text": 3}  # of the most likely, and of the least likely
MAX_CELLS = 12  # columns of a row
MAX_TOKENS = 400  # of a text
MAX_DRAWS = 16  # of a bound, for each example that is compared
MAX_VALUES = 2**20  # of all examples and draws
SURPRISES = 4  # tokens of a text that are named


@dataclass(frozen=True)
class Cell:
    """A value as text, its nats in words, and how unlikely it is: from 0 to 1."""

    text: str
    nats: str = ""
    unlikely: float = 0.0


@dataclass(frozen=True)
class Example:
    """An example: its nats and their terms, and a picture with its heat maps and their names, or cells."""

    nats: str
    key: float
    which: str
    terms: str = ""
    image: str = ""
    heats: list[tuple[str, str]] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    surprises: str = ""


@dataclass(frozen=True)
class Extremes:
    """A model's most and least likely examples, the names of their columns, and what their heat maps are.

    `scale` has for each heat map its name and its lightest and darkest nats.
    """

    model: str
    most: list[Example]
    least: list[Example]
    names: list[str]
    heat: str
    scored: int
    rest: str = ""
    scale: list[tuple[str, str, str]] = field(default_factory=list)


def view_examples(
    data: Data, runs: Sequence[tuple[str, Run]], seed: int, split: str
) -> tuple[Chart | None, list[Extremes]]:
    """Return the histogram of the nats of examples of a split, and each model's most and least likely ones."""
    part = _some(data, split, seed)
    nats, views = {}, []
    for name, run in runs:
        try:
            density, _ = scorable(run.density, part, run.spec)
        except ValueError:  # a density of complete rows
            continue
        draws = 1 if density.bound is Bound.EXACT else max(1, min(MAX_DRAWS, MAX_VALUES // part.tensor().numel()))
        scores = log_probs(density, part, samples=draws, seed=seed)
        nats[name] = scores.numpy()
        known = scores.isfinite().nonzero().flatten()
        if len(known) >= 2:
            views.append(_extremes(name, run, data, part, known[scores[known].argsort(descending=True)], scores))
    return histogram(nats, "window" if data.spec.kind == "text" else "example"), views


def _some(data: Data, split: str, seed: int) -> Split:
    """Return some examples of a split, in memory."""
    part = data.split(split)
    n = min(len(part), max(32, min(MAX_SCORED, 2**18 // data.spec.dims)))
    rows = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    return Split(*part.batch(rows))


def _extremes(name: str, run: Run, data: Data, part: Split, order: Tensor, scores: Float64[Tensor, " N"]) -> Extremes:
    spec, half = data.spec, min(SHOWN[data.spec.kind], len(order) // 2)
    rows = torch.cat([order[:half], order[-half:].flip(0)])
    x, context = part.batch(rows)
    found = cell_log_probs(run.density, x, context if run.density.conditional else None, spec, part.tensor())
    cells = None if found is None else found.nats
    scale: list[tuple[str, str, str]] = []
    rest, names = "", []
    if spec.kind == "image":
        shown, scale = _images(x, found, spec, part)
    elif spec.kind == "text":
        shown = _texts(x, cells, spec)
        rest = f"The first {MAX_TOKENS} of {spec.dims:,} tokens are shown." if spec.dims > MAX_TOKENS else ""
    else:
        kept = _kept(cells, half, spec.dims)
        names = [columns_of(data)[d].name for d in kept]
        shown = _rows(x.flatten(1), cells, data, kept)
        if len(kept) < spec.dims:
            which = "The first" if cells is None else "The most unlikely"
            rest = f"{which} {len(kept)} of {spec.dims:,} columns are shown."
        if x.is_floating_point() and part.tensor().isnan().any():
            rest += " The nats of a row are those of its known values, so a row with few of them has more."
    terms = _terms(found, len(x))
    examples = [
        Example(number(float(scores[row]), 1), float(scores[row]), which, term, **one)
        for row, which, term, one in zip(rows.tolist(), ["most"] * half + ["least"] * half, terms, shown, strict=True)
    ]
    heat = "" if found is None else found.what + (f"; {found.draws} draws" if found.draws > 1 else "")
    return Extremes(name, examples[:half], examples[half:], names, heat, len(order), rest.strip(), scale)


def _terms(found: Cells | None, n: int) -> list[str]:
    """Return for each example the sums of its terms in words, if there are several."""
    if found is None or len(found.terms) + len(found.rest) < 2:
        return [""] * n
    parts = {name: nats.sum(1) for name, nats in found.terms.items()} | dict(found.rest)
    parts = {name: nats for name, nats in parts.items() if nats.abs().max() >= 0.05}
    return [
        ", ".join(f"{name.split(' (')[0]} {number(float(nats[i]), 1)}" for name, nats in parts.items())
        for i in range(n)
    ]


def _kept(cells: Tensor | None, half: int, dims: int) -> list[int]:
    """Return the columns to show: of many, those that are most unlikely in the least likely rows."""
    if cells is None or dims <= MAX_CELLS:
        return list(range(min(dims, MAX_CELLS)))
    return sorted((cells[:half].mean(0) - cells[half:].mean(0)).topk(MAX_CELLS).indices.tolist())


def _share(cells: Float64[Tensor, "B D"]) -> Float64[Tensor, "B D"]:
    """Scale nats to 0 for the likeliest values shown and 1 for the unlikeliest."""
    low, high = cells.flatten().quantile(torch.tensor([0.02, 0.98], dtype=cells.dtype)).tolist()
    return ((high - cells) / ((high - low) or 1.0)).clamp(0, 1)


def _images(
    x: Tensor, found: Cells | None, spec: DataSpec, part: Split
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Return for each image its picture and its heat maps, and the scale of each heat map."""
    channels = spec.event_shape[0]
    if channels not in (1, 3):
        return [{} for _ in x], []
    first = part.first(64)[0]
    span = (0.0, spec.levels - 1.0) if spec.levels else (float(first.min()), float(first.max()))
    shown: list[dict[str, Any]] = [
        {"image": png_source(image_grid(one[None], spec, columns=1, span=span, cell=1)), "heats": []} for one in x
    ]
    from matplotlib import colormaps

    scale = []
    for name, nats in _maps(found, channels).items():
        low, high = nats.flatten().quantile(torch.tensor([0.02, 0.98], dtype=nats.dtype)).tolist()
        scale.append((name, number(high, 2), number(low, 2)))
        heat = colormaps["cividis"](_share(nats).view(len(x), *spec.event_shape[1:]).numpy())[..., :3] * 255
        for one, pixels in zip(shown, heat.astype(np.uint8), strict=True):
            one["heats"].append((name, png_source(pixels)))
    return shown, scale


def _maps(found: Cells | None, channels: int) -> dict[str, Float64[Tensor, "B P"]]:
    """Return the nats of each pixel, all channels together: their sum, and each term that varies over pixels."""
    if found is None:
        return {}
    terms = {name: nats.unflatten(1, (channels, -1)).sum(1) for name, nats in found.terms.items()}
    spread = {name: float(nats.max() - nats.min()) for name, nats in terms.items()}
    kept = {name: nats for name, nats in terms.items() if spread[name] >= 0.05 * max(spread.values())}
    if len(kept) == 1:
        return kept
    whole = torch.stack(list(terms.values())).sum(0)
    return {"sum": whole, **kept}


def _texts(x: Tensor, cells: Tensor | None, spec: DataSpec) -> list[dict[str, Any]]:
    """Return the tokens of texts as cells; those of one character, such as bytes, together."""
    tokens = x.flatten(1)[:, :MAX_TOKENS]
    if cells is not None:
        cells = cells[:, :MAX_TOKENS]
    share = None if cells is None else _share(cells)
    shown = []
    for i, row in enumerate(tokens.tolist()):
        found, surprises, decoder, first = [], [], getincrementaldecoder("utf-8")("replace"), 0
        for t, token in enumerate(row):
            text = _token(token, spec, decoder, final=t == len(row) - 1)
            if text:
                together = slice(first, t + 1)
                if cells is None or share is None:
                    found.append(Cell(text))
                else:
                    unlikely, nats = round(float(share[i, together].max()), 2), float(cells[i, together].sum())
                    found.append(Cell(text, number(nats), unlikely))
                    surprises.append((nats, f"“{text.strip() or repr(text)[1:-1]}” {number(nats, 1)}"))
                first = t + 1
        shown.append({"cells": found, "surprises": ", ".join(words for _, words in sorted(surprises)[:SURPRISES])})
    return shown


def _token(token: int, spec: DataSpec, decoder: IncrementalDecoder, *, final: bool) -> str:
    if spec.tokenizer is None or token >= spec.tokenizer.size:
        return f"{token} "
    text = decoder.decode(spec.tokenizer.decode([token]), final)
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rows(x: Tensor, cells: Tensor | None, data: Data, kept: Sequence[int]) -> list[dict[str, Any]]:
    columns, share = columns_of(data), None
    if cells is not None:
        cells = cells.masked_fill(x.isnan(), torch.nan) if x.is_floating_point() else cells
        # each column against its likeliest value: a column of large numbers is unlikely in every row
        share = _share((cells - cells.nan_to_num(-math.inf).max(0).values).nan_to_num(0.0))
    table = decode(x.double(), columns)
    texts = []
    for d in kept:
        name = columns[d].indicates or columns[d].name
        if columns[d].indicates:  # the column says only whether another's value is missing
            texts.append([columns[d].categories[int(code)] for code in x[:, d].tolist()])
        else:
            texts.append(["missing" if text is None else text for text in as_text(table[name]).to_list()])
    return [
        {"cells": [_cell(str(column[i]), cells, share, i, d) for d, column in zip(kept, texts, strict=True)]}
        for i in range(len(x))
    ]


def _cell(text: str, cells: Tensor | None, share: Tensor | None, i: int, d: int) -> Cell:
    if cells is None or share is None or not math.isfinite(float(cells[i, d])):
        return Cell(text)
    return Cell(text, number(float(cells[i, d])), round(float(share[i, d]), 2))
