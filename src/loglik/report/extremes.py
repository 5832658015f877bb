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
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.scores import log_probs
from loglik.report.cells import cell_log_probs
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


@dataclass(frozen=True)
class Cell:
    """A value as text, its nats in words, and how unlikely it is: from 0 to 1."""

    text: str
    nats: str = ""
    unlikely: float = 0.0


@dataclass(frozen=True)
class Example:
    """An example: its nats, and a picture with a heat map, or cells."""

    nats: str
    key: float
    image: str = ""
    heat: str = ""
    cells: list[Cell] = field(default_factory=list)


@dataclass(frozen=True)
class Extremes:
    """A model's most and least likely examples, the names of their columns, and what their heat maps are."""

    model: str
    most: list[Example]
    least: list[Example]
    names: list[str]
    heat: str
    scored: int
    rest: str = ""


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
        scores = log_probs(density, part, seed=seed)
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
    cells = None if found is None else found[0].nan_to_num(0.0)
    rest, names = "", []
    if spec.kind == "image":
        shown = _images(x, cells, spec, part)
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
    examples = [
        Example(nats=number(float(scores[row]), 1), key=float(scores[row]), **one)
        for row, one in zip(rows.tolist(), shown, strict=True)
    ]
    return Extremes(name, examples[:half], examples[half:], names, "" if found is None else found[1], len(order), rest)


def _kept(cells: Tensor | None, half: int, dims: int) -> list[int]:
    """Return the columns to show: of many, those that are most unlikely in the least likely rows."""
    if cells is None or dims <= MAX_CELLS:
        return list(range(min(dims, MAX_CELLS)))
    return sorted((cells[:half].mean(0) - cells[half:].mean(0)).topk(MAX_CELLS).indices.tolist())


def _share(cells: Float64[Tensor, "B D"]) -> Float64[Tensor, "B D"]:
    """Scale nats to 0 for the likeliest values shown and 1 for the unlikeliest."""
    low, high = cells.flatten().quantile(torch.tensor([0.02, 0.98], dtype=cells.dtype)).tolist()
    return ((high - cells) / ((high - low) or 1.0)).clamp(0, 1)


def _images(x: Tensor, cells: Tensor | None, spec: DataSpec, part: Split) -> list[dict[str, Any]]:
    channels = spec.event_shape[0]
    if channels not in (1, 3):
        return [{} for _ in x]
    first = part.first(64)[0]
    span = (0.0, spec.levels - 1.0) if spec.levels else (float(first.min()), float(first.max()))
    shown = [{"image": png_source(image_grid(one[None], spec, columns=1, span=span, cell=1))} for one in x]
    if cells is not None:
        from matplotlib import colormaps

        heat = _share(cells.view(len(x), channels, -1).sum(1)).view(len(x), *spec.event_shape[1:]).numpy()
        for one, pixels in zip(shown, (colormaps["cividis"](heat)[..., :3] * 255).astype(np.uint8), strict=True):
            one["heat"] = png_source(pixels)
    return shown


def _texts(x: Tensor, cells: Tensor | None, spec: DataSpec) -> list[dict[str, Any]]:
    """Return the tokens of texts as cells; those of one character, such as bytes, together."""
    tokens = x.flatten(1)[:, :MAX_TOKENS]
    if cells is not None:
        cells = cells[:, :MAX_TOKENS]
    share = None if cells is None else _share(cells)
    shown = []
    for i, row in enumerate(tokens.tolist()):
        found, decoder, first = [], getincrementaldecoder("utf-8")("replace"), 0
        for t, token in enumerate(row):
            text = _token(token, spec, decoder, final=t == len(row) - 1)
            if text:
                together = slice(first, t + 1)
                if cells is None or share is None:
                    found.append(Cell(text))
                else:
                    unlikely = round(float(share[i, together].max()), 2)
                    found.append(Cell(text, number(float(cells[i, together].sum())), unlikely))
                first = t + 1
        shown.append({"cells": found})
    return shown


def _token(token: int, spec: DataSpec, decoder: IncrementalDecoder, *, final: bool) -> str:
    if spec.tokenizer is None or token >= spec.tokenizer.size:
        return f"{token} "
    text = decoder.decode(spec.tokenizer.decode([token]), final)
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rows(x: Tensor, cells: Tensor | None, data: Data, kept: Sequence[int]) -> list[dict[str, Any]]:
    columns, share = columns_of(data), None if cells is None else _share(cells)
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
