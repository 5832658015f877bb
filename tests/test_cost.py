"""Cost against length, and the bytes that autograd saves."""

import math

import pytest
import torch
from torch import nn

from loglik.inspection import fit_power, saved_bytes, sequence_cost
from loglik.inspection.cost import FORMULA


def test_cost_in_length():
    costs = {cost.kind: cost for cost in sequence_cost((64, 128, 256), width=16, repeats=2)}
    assert set(costs) == {"attention", FORMULA, "convolution", "recurrence"}
    assert all(len(cost.seconds) == 3 and min(cost.seconds) > 0 for cost in costs.values())
    assert 1.5 < costs["attention"].flops_law.p < 2.0
    assert math.isclose(costs["convolution"].flops_law.p, 1.0, abs_tol=1e-9)
    assert math.isclose(costs["recurrence"].flops_law.p, 1.0, abs_tol=1e-9)
    assert costs[FORMULA].flops == costs["attention"].flops
    assert costs["attention"].quadratic is not None and costs["recurrence"].quadratic is None
    with pytest.raises(ValueError, match="at least two different lengths"):
        sequence_cost((64,))
    assert math.isclose(fit_power([1, 2, 4], [5, 5, 5]).p, 0.0, abs_tol=1e-12)


def test_memory_in_length():
    """By hand, in float32: the input, queries, keys and values, and what each kind keeps beside them."""
    width, lengths = 16, (128, 256, 512)
    costs = {cost.kind: cost for cost in sequence_cost(lengths, width=width, repeats=1)}
    assert costs[FORMULA].saved_bytes == tuple(4 * (4 * n * width + n * n) for n in lengths)  # and the matrix
    assert costs["attention"].saved_bytes == tuple(4 * (5 * n * width + n) for n in lengths)  # and the output
    assert costs["convolution"].saved_bytes == tuple(4 * n * width for n in lengths)
    assert 1.7 < costs[FORMULA].saved_law.p < 2.0
    for kind in ("attention", "convolution", "recurrence"):
        assert math.isclose(costs[kind].saved_law.p, 1.0, abs_tol=1e-9)


def test_memory_held_counts_each_tensor_once_and_no_weights():
    layer = nn.Linear(6, 4)
    x = torch.randn(10, 6)
    assert saved_bytes(lambda: layer(x).sigmoid().sum(), layer.parameters()) == 4 * (10 * 6 + 10 * 4)
    assert saved_bytes(lambda: layer(x) + layer(x), layer.parameters()) == 4 * 10 * 6
