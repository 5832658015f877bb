"""Plots of samples beside data: marginals, pairs of columns, and latent dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from loglik.data.spec import Column
from loglik.report.panel import INK, panel, short

__all__ = ["latent_bars", "marginal", "scatter"]


def marginal(column: Column, data: Float[np.ndarray, " N"], samples: Float[np.ndarray, " M"], limit: int = 8) -> str:
    """Plot the distribution of a column: data filled, samples outlined; bars if it is categorical."""
    data, samples = data[np.isfinite(data)], samples[np.isfinite(samples)]

    def draw(axes: Any) -> None:
        axes.set_title(short(column.name, 24))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        if not len(data):
            return
        if column.categories:
            _category_bars(axes, column.categories, data, samples, limit)
            return
        edges = _edges(data, integer=column.type == "integer")
        look = {"bins": edges, "density": True}
        axes.hist(data, color=INK["data"], **look)
        inside = samples[(samples >= edges[0]) & (samples <= edges[-1])]
        if len(inside):  # scaled by the share of the samples within the range
            weights = np.full(len(inside), 1 / (len(samples) * (edges[1] - edges[0])))
            axes.hist(inside, bins=edges, weights=weights, histtype="step", color=INK["model"], linewidth=1.4)
        axes.set_xlim(edges[0], edges[-1])
        axes.locator_params(axis="x", nbins=4)

    return panel(2.2, 1.5, draw)


def scatter(data: Float[np.ndarray, "N 2"], samples: Float[np.ndarray, "M 2"], labels: tuple[str, str]) -> str:
    """Plot two dimensions against each other, in the range of the data: data grey, samples coloured."""
    data = data[np.isfinite(data).all(1)]

    def draw(axes: Any) -> None:
        if not len(data):
            return
        axes.scatter(*data.T, s=6, color=INK["data"], linewidths=0)
        finite = samples[np.isfinite(samples).all(1)]
        axes.scatter(*finite.T, s=4, color=INK["model"], alpha=0.6, linewidths=0)
        for limit, values in ((axes.set_xlim, data[:, 0]), (axes.set_ylim, data[:, 1])):
            low, high = np.quantile(values, [0.005, 0.995])
            pad = 0.1 * (high - low) or 1.0
            limit(low - pad, high + pad)
        axes.locator_params(nbins=4)
        axes.set_xlabel(short(labels[0], 24))
        axes.set_ylabel(short(labels[1], 24))

    return panel(2.2, 1.9, draw)


def latent_bars(kl: Float[np.ndarray, " L"], active: Bool[np.ndarray, " L"], limit: int = 64) -> str:
    """Plot the KL of each latent dimension in nats, at most `limit`, largest first; inactive ones are grey."""
    order = np.argsort(-kl)[:limit]

    def draw(axes: Any) -> None:
        colors = [INK["model"] if active[d] else INK["data"] for d in order]
        axes.bar(np.arange(len(order)), kl[order], width=0.8, color=colors)
        axes.set_ylabel("KL, nats")
        rest = f" of {len(kl)}" if len(kl) > len(order) else ""
        axes.set_xlabel(f"{len(order)}{rest} latent dimensions")
        axes.set_xticks([])
        axes.locator_params(axis="y", nbins=4)

    return panel(2.8, 1.9, draw)


def _edges(data: Float[np.ndarray, " N"], *, integer: bool) -> np.ndarray:
    """Return the edges of equal bins over the central 99 % of the data; for integers, around integers."""
    low, high = np.quantile(data, [0.005, 0.995])
    if not integer:
        pad = 0.06 * (high - low) or 0.5
        return np.linspace(low - pad, high + pad, 29)
    step = max(1, math.ceil((high - low + 1) / 30))
    return np.arange(math.floor(low) - 0.5, high + step + 0.5, step)


def _category_bars(axes: Any, categories: Sequence[str], data: np.ndarray, samples: np.ndarray, limit: int) -> None:
    """Draw the shares of the commonest categories, data beside samples."""
    k = len(categories)
    shares = [
        np.bincount(codes.round().clip(0, k - 1).astype(int), minlength=k) / max(len(codes), 1)
        for codes in (data, samples)
    ]
    shown = np.sort(np.argsort(-shares[0], kind="stable")[:limit])
    positions = np.arange(len(shown))
    axes.bar(positions - 0.2, shares[0][shown], width=0.4, color=INK["data"])
    axes.bar(positions + 0.2, shares[1][shown], width=0.4, color=INK["model"])
    if k > limit:
        axes.set_xlabel(f"the {limit} most common of {k}")
    names = [short(categories[i], 9) for i in shown]
    crowded = sum(map(len, names)) + len(names) > 26
    axes.set_xticks(positions, names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    axes.tick_params(axis="x", length=0)
