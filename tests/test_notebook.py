"""Runs, results, comparisons and data in a notebook: one line, an escaped table, plots, help."""

import pydoc
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
import torch

import loglik
from loglik.comparison import Comparison
from loglik.data import Column, as_data
from loglik.data.dataset import Data, Split
from loglik.evaluation import row_scores
from loglik.notebook import facts, table
from loglik.tasks import Samples, samples_of

X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
HOSTILE = '<script>alert("x")</script>\x1b[31m'


class Cells(HTMLParser):
    """Collects the text of cells, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        assert attrs == []
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def run():
    return loglik.fit("flow", X, max_steps=30, validate_every=10, seed=0, width=8, depth=1)


@pytest.fixture
def axes():
    with plt.rc_context({"backend": "agg"}):
        yield plt.figure().subplots()
    plt.close("all")


def test_a_run(run):
    line = repr(run)
    assert "\n" not in line and line.startswith("Run(model=flow, data=array: arrays 2, bound=exact, parameters=")
    assert "steps=30" in line and "nats" in line
    cells = Cells(run._repr_html_())
    assert cells.tags[0] == "table" and cells.texts[cells.texts.index("steps") + 1] == "30"
    built = loglik.Run(loglik.StandardNormal((2,)), loglik.DataSpec(kind="array", event_shape=(2,)))
    assert repr(built) == "Run(model=standardnormal, data=arrays 2, bound=exact, parameters=0, steps=0)"


def test_a_result_and_a_comparison():
    rows = loglik.compare(X, models=["flow"], max_steps=3, budget="5s")
    result = rows[0].result
    assert repr(result).startswith("Result(independent: ") and "nats (exact)" in repr(result)
    assert f"{result.nats:.6g}" in Cells(result._repr_html_()).texts
    lines = repr(rows).splitlines()
    assert lines[0] == f"Comparison of {len(rows)} rows" and lines[1].startswith("  1  ")
    cells = Cells(rows._repr_html_())
    assert cells.tags.count("tr") == len(rows) + 1 and {"independent", "flow"} <= set(cells.texts)


def test_data_and_their_columns():
    columns = (Column(name=HOSTILE, type="categorical", categories=("<i>", "b")), Column(name="size", type="numeric"))
    spec = loglik.DataSpec(kind="table", event_shape=(2,), columns=columns)
    part = Split(torch.zeros(10, 2))
    data = Data(HOSTILE, spec, part, part, part)
    html = data._repr_html_()
    cells = Cells(html)
    assert set(cells.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "\x1b" not in html + repr(data) and "size" in cells.texts and "numeric" in cells.texts
    assert repr(as_data("digits")).startswith("Data(digits: images 1×8×8, 17 levels, 10 classes; ")
    assert "digits" in "".join(Cells(as_data("digits")._repr_html_()).texts)


def test_cells_are_escaped():
    for html in (table([HOSTILE], [[HOSTILE]], caption=HOSTILE), facts({HOSTILE: HOSTILE}, caption=HOSTILE)):
        assert "<script" not in html and "\x1b" not in html and html.count("&lt;script&gt;") == 3


def test_plots(run, axes):
    assert run.plot(axes) is axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[10, 20, 30]] * 2
    np.testing.assert_array_equal(axes.get_lines()[1].get_ydata(), [row["validation_nats"] for row in run.history])
    axes.clear()
    run.plot(axes, against="time")
    assert list(axes.get_lines()[0].get_xdata()) == [row["time"] for row in run.history]
    with pytest.raises(ValueError, match="against must be step or time, got 'epoch'"):
        run.plot(axes, against="epoch")
    with pytest.raises(ValueError, match="this run has no history to plot"):
        loglik.fit("independent", X).plot(axes)
    axes.clear()
    samples = samples_of(run, 50)
    assert samples.plot(axes) is axes
    np.testing.assert_array_equal(np.asarray(axes.collections[0].get_offsets()), samples.tensor().numpy())
    axes.clear()
    samples.plot(axes, columns=("x1",))
    assert sum(bar.get_height() for bar in axes.patches) == 50
    with pytest.raises(ValueError, match=r"columns must be one or two of x0, x1, got x7"):
        samples.plot(axes, columns=("x7",))


def test_plots_of_images_and_comparisons(axes):
    data = as_data("digits")
    density = loglik.fit("independent", data).density
    Samples(density, data.spec, 5).plot(axes)
    assert axes.get_images()[0].get_array().shape == (24, 24)
    axes.clear()
    rows = loglik.compare(X, models=["flow"], max_steps=3, budget="5s")
    rows.plot(axes)
    ranked = sorted((row.result for row in rows if row.result.rank), key=lambda r: r.rank)
    assert [bar.get_width() for bar in axes.patches] == [r.nats for r in ranked]


def test_new_axes_without_any(run):
    with plt.rc_context({"backend": "agg"}):
        assert run.plot().get_xlabel() == "step"
    plt.close("all")


def test_scores_of_rows_as_a_frame(run):
    scores = row_scores(run.density, Split(X))
    frame = scores.frame(torch.arange(100).flip(0))
    assert frame.columns == ["row", "nats", "stderr"] and frame["row"].to_list() == list(range(1, 101))
    np.testing.assert_array_equal(frame["nats"].to_numpy(), scores.nats.flip(0).numpy())
    assert isinstance(scores.frame(), pl.DataFrame) and scores.frame()["nats"][0] == scores.nats[0].item()


@pytest.mark.parametrize("thing", [loglik, loglik.fit, loglik.Run, Comparison])
def test_help_answers(thing):
    text = pydoc.render_doc(thing, renderer=pydoc.plaintext)
    assert len(text) > 300 and not re.search(r"Unknown|Traceback", text)
    if thing is loglik:
        assert "kl_divergence(" in text and "evaluate(" in text
