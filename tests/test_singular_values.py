"""Singular values of Jacobians, exact and estimated."""

import math

import torch

from loglik.inspection import singular_values


def test_singular_values_exact_and_estimated():
    torch.manual_seed(1)
    weight = torch.randn(60, 40)
    x = torch.randn(3, 40, requires_grad=True)
    truth = torch.linalg.svdvals(weight)
    y = x @ weight.T
    exact, estimate = singular_values(y, x), singular_values(y, x, exact=10)
    assert exact is not None and estimate is not None
    assert math.isclose(exact.largest, truth[0], rel_tol=1e-4) and math.isclose(exact.smallest, truth[-1], rel_tol=1e-4)
    assert math.isclose(estimate.largest, truth[0], rel_tol=1e-3) and estimate.smallest is None
    assert math.isclose(estimate.rms, exact.rms, rel_tol=0.1)
    assert singular_values(torch.randn(3, 2, requires_grad=True) * 2, x) is None
