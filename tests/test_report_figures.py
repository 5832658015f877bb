"""Charts of the report: whole and cut bars, columns with many categories, training curves, correlations."""

import json
import math

import numpy as np
import pytest

from loglik.data.spec import Column
from loglik.report.chart import Chart, columns
from loglik.report.classifier_figures import confusion
from loglik.report.likelihood_figures import Bar, bars, curves, histogram
from loglik.report.sample_figures import axis_of, correlations, marginal, pairs


def test_the_winner_s_bar_is_whole_and_only_a_compressor_s_is_cut():
    """A density far ahead of the rest was cut, with its whisker, by a rule for PNG."""
    rows = [Bar("flow", -5.0, 1.0), Bar("vae", -24.8, 1.0), Bar("independent", -25.0, 1.0)]
    chart = bars(rows, unit="nats", baseline=-25.0, from_zero=False)
    data, domain = chart.spec["data"]["columns"], chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert data["shown"] == [-5.0, -24.8, -25.0] and data["start"] == [-25.0] * 3 and not any(data["cut"])
    assert domain[0] < -26 and domain[1] > -4
    assert data["text"] == ["−5.00", "−24.80", "−25.00"]

    rows = [Bar("vae", 1.8, 0.1), Bar("xz", 2.9, 0.0, may_break=True), Bar("png", 14.0, 0.3, may_break=True)]
    chart = bars([*rows, Bar("independent", 2.4, 0.1)], unit="bits", baseline=2.4, from_zero=True)
    data = chart.spec["data"]["columns"]
    assert [data["shown"][i] for i in (0, 1, 3)] == pytest.approx([1.8, 2.9, 2.4])
    assert 2.9 < data["shown"][2] < 5 and data["cut"] == [False, False, True, False]
    assert data["text"][2] == "14.00" and data["value"][2] == 14.0


def test_a_column_of_many_categories_says_how_many_are_drawn():
    column = Column(name="letter", type="categorical", categories=tuple("abcdefghij"))
    codes = np.arange(10.0).repeat(3)
    chart = marginal(column, codes, {"flow": codes})
    assert chart.spec["encoding"]["x"]["title"] == "the 8 most common of 10"
    assert len(chart.spec["data"]["columns"]["share"]) == 2 * 8


def test_shares_are_of_all_values_those_outside_the_range_too():
    column = Column(name="a", type="numeric")
    data, samples = np.linspace(0, 1, 1001), np.array([0.5, 0.5, 99.0, math.nan])
    spec = marginal(column, data, {"flow": samples}).spec["data"]["columns"]
    share = [sum(v for v, s in zip(spec["share"], spec["s"], strict=True) if s == name) for name in ("data", "flow")]
    assert share == pytest.approx([1.0, 2 / 3], abs=0.01)


def test_curves_hold_both_axes_and_all_points():
    history = {"step": [1.0, 2.0], "seconds": [0.1, 0.2], "train": [-3.0, math.nan], "validation": [-4.0, -3.5]}
    spec = json.loads(curves("flow", history, unit="nats", baseline=-5.0, limits=None).json)
    assert spec["data"]["columns"]["train"] == [-3, None]
    assert spec["encoding"]["x"]["field"] == "seconds"
    assert spec["layer"][1]["encoding"]["y"]["datum"] == -5


def test_a_histogram_leaves_out_what_is_not_finite():
    chart = histogram({"a": np.array([-1.0, -2.0, -math.inf]), "b": np.array([-math.inf])}, "example")
    assert set(chart.spec["data"]["columns"]["model"]) == {"a"}
    assert sum(chart.spec["data"]["columns"]["share"]) == pytest.approx(1.0)
    assert histogram({"b": np.array([-math.inf])}, "example") is None


def test_correlations_of_data_stand_above_the_diagonal_and_of_samples_below():
    noise = np.random.default_rng(0)
    x = noise.normal(size=400)
    data = np.stack([x, x + 0.01 * noise.normal(size=400), noise.normal(size=400)], 1)
    samples = np.stack([x, -x, noise.normal(size=400)], 1)
    named = [Column(name=name, type="numeric") for name in "abc"]
    rows = correlations(named, data, {"flow": samples}).spec["data"]["columns"]
    r = {(i, j): value for i, j, value in zip(rows["i"], rows["j"], rows["r"], strict=True)}
    assert r[0, 1] == pytest.approx(1.0, abs=0.01) and r[1, 0] == pytest.approx(-1.0)
    assert abs(r[0, 2]) < 0.15 and (0, 0) not in r
    assert correlations(named[:1], data, {"flow": samples}) is None


def test_correlations_leave_out_rows_with_missing_values():
    pair = np.array([[1.0, 2.0], [2.0, 3.0], [math.nan, 0.0], [3.0, 4.0]])
    named = [Column(name=name, type="numeric") for name in "ab"]
    rows = correlations(named, pair, {"flow": pair}).spec["data"]["columns"]
    assert rows["r"] == pytest.approx([1.0, 1.0])


def test_categories_stand_at_their_codes_with_noise_and_a_class_can_be_chosen():
    shown = [Column(name="k", type="categorical", categories=("x", "y")), Column(name="a", type="numeric")]
    data = np.array([[0.0, 1.5], [1.0, 2.5]])
    chart = pairs(shown, data, {"flow": data}, classes={"data": ["p", "q"]}, seed=0)
    held = chart.spec["data"]["columns"]
    assert np.abs(np.array(held["c0"]) - [0, 1, 0, 1]).max() <= 0.3 and held["c1"] == [1.5, 2.5, 1.5, 2.5]
    assert held["k"] == [None, None, "p", "q"] and held["s"] == ["flow", "flow", "data", "data"]  # data are on top
    assert axis_of(0, shown[0], data[:, 0])["axis"]["values"] == [0, 1]


def test_a_confusion_matrix_of_equal_names_keeps_its_classes_apart():
    chart = confusion(np.eye(3, dtype=int), ("a", "a", "b"), "classifier")
    assert set(chart.spec["data"]["columns"]["true"]) == {"a", "a (2)", "b"}


def test_json_of_a_chart_ends_no_script():
    chart = Chart({"data": columns(name=["</script><b>", "<!--"]), "mark": "bar"}, "an alternative & text")
    assert "<" not in chart.json and json.loads(chart.json)["data"]["columns"]["name"] == ["</script><b>", "<!--"]
