"""Soft bounds against their formulas and their inverses."""

import pytest
import torch

from loglik.networks.soft_bound import inverse_soft_bound, inverse_tanh_bound, soft_bound, tanh_bound

BOUNDS = [(soft_bound, inverse_soft_bound), (tanh_bound, inverse_tanh_bound)]


@pytest.mark.parametrize(("bound", "inverse"), BOUNDS, ids=["soft", "tanh"])
def test_a_bound_holds_everywhere_and_is_the_identity_about_zero(float64, bound, inverse):
    raw = torch.cat([-torch.logspace(8, -8, 50), torch.logspace(-8, 8, 50)])
    value = bound(raw, 3.0)
    assert (value.abs() <= 3).all() and (value.diff() >= 0).all()
    near = raw.abs() < 1e-4
    torch.testing.assert_close(value[near], raw[near], rtol=1e-4, atol=0)
    inside = torch.linspace(-2.8, 2.8, 29)
    torch.testing.assert_close(bound(inverse(inside, 3.0), 3.0), inside)


def test_the_inverse_of_tanh_is_finite_at_and_beyond_the_bound():
    raw = inverse_tanh_bound(torch.tensor([-torch.inf, -6.0, 6.0, 50.0]))
    assert raw.isfinite().all()
    torch.testing.assert_close(tanh_bound(raw), torch.tensor([-5.9, -5.9, 5.9, 5.9]))
