"""The fixed transforms: log-determinants against autograd, inverses, and dequantization."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loglik.density import Bound
from loglik.transforms import Dequantize, Jitter, Logit, PartialOut, Reshape, Scale, SoftTails, Standardise
from loglik.transforms.newton import safeguarded_newton


def jacobian_log_det(transform, x, context=None):
    """log|det ∂z/∂x| of each row, by automatic differentiation."""
    values = []
    for i, row in enumerate(x):
        given_row = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda r, c=given_row: transform.encode(r.unsqueeze(0), c)[0].flatten(), row
        )
        values.append(torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel())).logabsdet)
    return torch.stack(values)


def standardise() -> Standardise:
    transform = Standardise((4,))
    transform.initialise(torch.tensor([3.0, -10.0, 0.0, 1e4]) + torch.tensor([0.1, 5, 1, 300]) * torch.randn(50, 4))
    return transform


def shares(n: int = 400) -> torch.Tensor:
    """Two columns apart, a third that is the rest to 1 up to 1e-3, a fourth that is twice the first up to 1e-4."""
    x = torch.randn(n, 4)
    x[:, 2] = 1 - x[:, 0] - x[:, 1] + 1e-3 * torch.randn(n)
    x[:, 3] = 2 * x[:, 0] + 1e-4 * torch.randn(n)
    return x


def partial_out() -> PartialOut:
    transform = PartialOut(4)
    transform.initialise(shares())
    return transform


@pytest.mark.parametrize(
    "build",
    [lambda: Scale(-0.25, 3.0), lambda: Logit(), lambda: Logit(0.2), standardise, partial_out],
    ids=["scale", "logit", "logit wide", "standardise", "partial out"],
)
def test_log_det_is_the_jacobians_and_decode_inverts(float64, build):
    transform, x = build(), torch.rand(6, 4)
    z, log_det = transform.encode(x)
    assert log_det.shape == (6,) and transform.bound is Bound.EXACT
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x))
    torch.testing.assert_close(transform.decode(z), x)


def test_log_det_counts_every_dimension_of_an_image(float64):
    x = torch.rand(3, 2, 4, 5)
    _, log_det = Scale(1 / 256).encode(x)
    torch.testing.assert_close(log_det, torch.full((3,), -40 * math.log(256)))
    assert Logit().encode(x)[1].shape == (3,)


@pytest.mark.parametrize("scale", [0, 0.0])
def test_scale_of_zero_is_refused(scale):
    with pytest.raises(ValueError, match="scale must not be 0"):
        Scale(scale)


@pytest.mark.parametrize("alpha", [0, 0.5, -1])
def test_logit_margin_is_checked(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie between 0 and 0\.5"):
        Logit(alpha)


def test_logit_maps_the_real_line_onto_itself(float64):
    """It is finite at the ends, linear beyond, with a continuous slope and without clamping."""
    transform = Logit()
    x = torch.tensor([[-3.0], [-1e-9], [0.0], [1e-9], [1.0], [1.5]])
    z, log_det = transform.encode(x)
    assert (z.diff(dim=0) > 0).all() and log_det.isfinite().all()
    torch.testing.assert_close(log_det[1], log_det[3])
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x))
    torch.testing.assert_close(transform.decode(z), x)
    far = torch.tensor([[-1e6], [1e6]])
    torch.testing.assert_close(transform.encode(transform.decode(far))[0], far)


def test_standardise_fits_the_training_data():
    x = torch.tensor([5.0, -1e5, 1e-3]) + torch.tensor([2.0, 30.0, 1e-4]) * torch.randn(500, 3)
    transform = Standardise((3,))
    transform.initialise(x)
    z, _ = transform.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(3), atol=1e-3, rtol=0)


def test_only_chosen_dimensions_are_standardised():
    x = torch.tensor([5.0, 2.0]) + torch.tensor([2.0, 3.0]) * torch.randn(500, 2)
    transform = Standardise((2,), [True, False])
    transform.initialise(x)
    z, log_det = transform.encode(x)
    assert torch.equal(z[:, 1], x[:, 1]) and abs(z[:, 0].std() - 1) < 1e-2
    torch.testing.assert_close(log_det, -transform.std[0].log().expand(500))
    torch.testing.assert_close(transform.decode(z), x)


@pytest.mark.parametrize("value", [0.0, 7.0, -3e8])
def test_a_constant_column_keeps_its_unit(value):
    transform = Standardise((1,))
    transform.initialise(torch.full((20, 1), value))
    z, log_det = transform.encode(torch.full((2, 1), value))
    assert transform.std.item() == 1 and z.tolist() == [[0.0], [0.0]] and log_det.tolist() == [0.0, 0.0]


def test_a_column_of_outliers_is_scaled_by_its_quartiles():
    x = torch.randn(400, 2)
    x[7, 1] = 1e6
    transform = Standardise((2,))
    transform.initialise(x)
    z, _ = transform.encode(x)
    assert 0.8 < z[:7, 1].std() < 1.3 and z[:, 0].std() == pytest.approx(1, abs=1e-2)
    assert SoftTails().encode(z)[0].abs().max() < 60


def test_near_deterministic_columns_become_residuals():
    x, transform = shares(2000), partial_out()
    z, log_det = transform.encode(x)
    assert torch.equal(z[:, :2], x[:, :2])
    torch.testing.assert_close(z[:, 2:].std(0), torch.ones(2), atol=0.1, rtol=0)
    assert (torch.corrcoef(z.T) - torch.eye(4)).abs().max() < 0.1
    assert log_det[0].item() == pytest.approx(-math.log(1e-3) - math.log(1e-4), abs=0.2)
    torch.testing.assert_close(transform.decode(z), x, atol=1e-5, rtol=0)


def test_other_columns_are_unchanged():
    spread = torch.randn(400, 1)
    loose = torch.cat([spread, spread + 0.1 * torch.randn(400, 1)], 1)
    outlier = torch.randn(400, 2)
    outlier[3] = 1e6  # correlates the two columns in this row only
    constant = torch.cat([torch.full((400, 1), 7.0), torch.randn(400, 1), torch.zeros(400, 1)], 1)
    short = shares(30)
    for x in (loose, outlier, constant, short):
        transform = PartialOut(x.shape[1])
        transform.initialise(x)
        z, log_det = transform.encode(x)
        assert torch.equal(z, x) and not log_det.any()


def test_three_copies_of_a_column_are_finite():
    x = torch.randn(300, 1).expand(-1, 3).contiguous()
    transform = PartialOut(3)
    transform.initialise(x)
    z, log_det = transform.encode(x)
    assert z.abs().max() < 10 and log_det[0].item() == pytest.approx(-2 * math.log(1e-5), rel=1e-2)
    torch.testing.assert_close(transform.decode(z), x, atol=1e-5, rtol=0)


def test_safeguarded_newton_finds_a_root_where_newton_alone_diverges(float64):
    """For atan, Newton's steps from a far start leave the bracket."""
    root = torch.linspace(-900.0, 900.0, 31)
    low, high = torch.full_like(root, -1000.0), torch.full_like(root, 1000.0)

    def residual(x):
        value = x.atan() - root.atan()
        return value, value * (1 + x.square())

    assert (low - residual(low)[1] > high).any()
    found = safeguarded_newton(residual, low, high, start=low, steps=60)
    torch.testing.assert_close(found, root, rtol=1e-9, atol=1e-9)


def test_soft_tails_keep_the_middle_and_decode_what_is_far():
    x = torch.tensor([[-1e6, -4.0, 0.5, 3.9, 1e30]])
    z, log_det = SoftTails().encode(x)
    assert torch.equal(z[:, 1:4], x[:, 1:4]) and z.abs().max() < 300 and log_det.isfinite().all()
    torch.testing.assert_close(SoftTails().decode(z), x, rtol=1e-4, atol=0)
    assert SoftTails().decode(torch.tensor([[1e6]])).isfinite().all()


def test_jitter_is_in_training_only_and_less_with_more_events():
    transform, x = Jitter(), torch.zeros(4000, 1)
    transform.initialise(x)
    assert transform.encode(x)[0].std() == pytest.approx(80 / 4000, rel=0.1)
    assert torch.equal(transform.eval().encode(x)[0], x)
    transform.initialise(x[:20])
    assert transform.scale == 0.5


def test_reshape_keeps_the_numbers_and_the_volume():
    x = torch.arange(24.0).view(2, 3, 4)
    transform = Reshape((3, 4), (12,))
    z, log_det = transform.encode(x)
    assert z.shape == (2, 12) and log_det.tolist() == [0, 0]
    assert torch.equal(transform.decode(z), x)
    assert transform.decoded_shape((12,)) == (3, 4)
    with pytest.raises(ValueError, match="before and after must have the same size"):
        Reshape((3, 4), (13,))


# ---- dequantization


@settings(deadline=None, derandomize=True, max_examples=60)
@given(levels=st.integers(2, 70_000), data=st.data())
def test_integers_survive_dequantization(levels, data):
    values = data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=20))
    x = torch.tensor([values]).to(torch.uint8 if levels <= 256 else torch.int64)
    transform = Dequantize(levels)
    v, log_det = transform.encode(x.double() if levels > 256 else x)  # float32 cannot resolve u at large integers
    assert ((x == 0) | (x == levels - 1)).any() or log_det.tolist() == [0]
    assert torch.equal(transform.decode(v), x)


@pytest.mark.parametrize(("levels", "level"), [(3, 0), (3, 2), (2, 1)])
def test_the_cell_of_an_end_level_is_a_half_line(float64, levels, level):
    """The noise is a density on the half-line: weights of a wide Gaussian average to its mass there."""
    x = torch.full((200_000, 1), level, dtype=torch.uint8)
    v, log_det = Dequantize(levels).encode(x)
    inner = 1.0 if level == 0 else levels - 1.0  # the end of the cell
    assert ((v < inner) if level == 0 else (v >= inner)).all() and torch.equal(Dequantize(levels).decode(v), x)
    assert 0.01 < ((v - inner).abs() > 1).double().mean() < 0.05
    wide = torch.distributions.Normal(inner, 0.7)
    weights = (wide.log_prob(v).squeeze(1) + log_det).exp()
    assert abs(weights.mean() - 0.5) < 5 * weights.std() / len(v) ** 0.5


def test_the_cell_of_a_single_code_is_the_real_line(float64):
    x = torch.zeros(100_000, 1)
    v, log_det = Dequantize(categories=[1]).encode(x)
    assert (v < 0).any() and (v > 1).any() and torch.equal(Dequantize(categories=[1]).decode(v), x.long())
    weights = (torch.distributions.Normal(0.5, 0.6).log_prob(v).squeeze(1) + log_det).exp()
    assert abs(weights.mean() - 1) < 5 * weights.std() / len(v) ** 0.5


def test_codes_are_dequantized_and_checked():
    transform = Dequantize(discrete=[True, False, True], categories=[3, 0, 0])
    x = torch.tensor([[2.0, 0.5, -7.0], [0.0, 1.5, 300.0]])
    assert torch.equal(transform.decode(transform.encode(x)[0]), x)
    far = transform.decode(torch.tensor([[-40.0, 0.5, -40.5], [99.0, 0.5, 99.5]]))
    assert far.tolist() == [[0, 0.5, -41], [2, 0.5, 99]]  # an unlimited range stays unlimited
    with pytest.raises(ValueError, match=r"column 0 must hold codes 0 \.\.\. 2, got 3"):
        transform.encode(torch.tensor([[3.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="got both"):
        Dequantize(3, categories=[3])


def test_dequantization_is_uniform_over_the_unit_interval():
    x = torch.full((20_000, 1), 3, dtype=torch.uint8)
    u = Dequantize(8).encode(x)[0] - 3
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 20_000)
    assert abs(u.var() - 1 / 12) < 0.003
    assert Dequantize(8).bound is Bound.LOWER


def test_only_integer_dimensions_are_dequantized():
    transform = Dequantize(discrete=[True, False])
    x = torch.tensor([[2.0, 0.25], [-3.0, 1.75]])
    v, _ = transform.encode(x)
    assert torch.equal(v[:, 1], x[:, 1]) and not torch.equal(v[:, 0], x[:, 0])
    assert torch.equal(transform.decode(v), x)
    assert torch.equal(transform.decode(v + torch.tensor([0.0, 0.1]))[:, 0], x[:, 0])


def test_decoded_levels_stay_in_range_and_open_ranges_stay_open():
    z = torch.tensor([[-5.0, 300.0]])
    assert Dequantize(256).decode(z).tolist() == [[0, 255]]
    assert Dequantize(256).decode(z).dtype == torch.uint8 and Dequantize(257).decode(z).dtype == torch.int64
    assert Dequantize().decode(z).tolist() == [[-5, 300]]


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Dequantize(1)
