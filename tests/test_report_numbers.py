"""Numbers of the report as text."""

import math

import pytest

from helpers.reports import IMAGES, VECTORS
from loglik.evaluation.result import Result
from loglik.report.numbers import number, plus_minus, unit_of


def test_numbers():
    assert plus_minus(-3.14159, 0.0123) == "−3.142 ± 0.012"
    assert plus_minus(1234.5, 25.0, signed=True) == "+1,234 ± 25"
    assert plus_minus(-2.0, None) == "−2.00"
    assert plus_minus(1.0, 0.0) == "1.00" and plus_minus(0.0, 2e-7) == "0.00000 ± 2e-07"  # never ± 0
    assert (number(None), number(math.nan), number(math.inf)) == ("–", "–", "∞")
    results = [Result(model=m, bound="exact", nats=v, stderr=s, n=9) for m, v, s in [("a", 1.0, 3.0), ("b", 5.0, 4.0)]]
    assert unit_of(VECTORS, results).name == "nats per example"
    assert unit_of(IMAGES, results).per_nat == pytest.approx(-1 / (64 * math.log(2)))
