"""Plots of the report: whole and broken bars, columns with many categories."""

import numpy as np
import pytest

from loglik.data.spec import Column
from loglik.report import likelihood_figures
from loglik.report.likelihood_figures import Bar, bars
from loglik.report.sample_figures import marginal


def drawn_bars(rows: list[Bar], monkeypatch, **options):
    """The axes of `bars`."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    monkeypatch.setattr(likelihood_figures, "panel", lambda width, height, draw: draw(axes) or "")
    bars(rows, **options)
    return axes


def test_the_winner_s_bar_is_whole_and_only_a_compressor_s_breaks(monkeypatch):
    """A density far ahead of the rest was cut, with its whisker, by a rule for PNG."""
    rows = [Bar("flow", -5.0, 1.0), Bar("vae", -24.8, 1.0), Bar("independent", -25.0, 1.0)]
    axes = drawn_bars(rows, monkeypatch, unit="nats", baseline=-25.0, from_zero=False)
    assert [bar.get_width() for bar in axes.patches[:3]] == pytest.approx([20.0, 0.2, 0.0])
    assert axes.get_xlim()[1] > -4 and len(axes.patches) == 3  # no gap
    assert [text.get_text() for text in axes.texts] == ["−5.00", "−24.80", "−25.00"]

    rows = [Bar("vae", 1.8, 0.1), Bar("xz", 2.9, 0.0, may_break=True), Bar("png", 14.0, 0.3, may_break=True)]
    axes = drawn_bars([*rows, Bar("independent", 2.4, 0.1)], monkeypatch, unit="bits", baseline=2.4, from_zero=True)
    vae, xz, png, independent, *gaps = (bar for bar in axes.patches)
    assert [bar.get_width() for bar in (vae, xz, independent)] == pytest.approx([1.8, 2.9, 2.4])
    assert 2.9 < png.get_width() < 5 and len(gaps) == 2  # in its bar and in the axis
    assert axes.texts[2].get_text() == "14.00" and max(axes.get_xticks()) < png.get_width()


def test_a_column_of_many_categories_says_how_many_are_drawn():
    column = Column(name="letter", type="categorical", categories=tuple("abcdefghij"))
    codes = np.arange(10.0).repeat(3)
    assert "the 8 most common of 10" in marginal(column, codes, codes)
