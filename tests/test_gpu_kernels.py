"""Triton's kernels against their formulas in float64, by Triton's interpreter on the CPU."""

import itertools
import os

import pytest
import torch

from helpers.alone import run_alone
from helpers.needs import needs
from loglik.flows import spline
from loglik.flows.spline import rational_quadratic_spline, spline_formula

BOUND = 3.0


def check_kernels():
    """Map, log-slope and gradients within float32's precision, inside and outside the interval."""
    from loglik.gpu import spline as spline_triton

    for (bins, m, n), inverse in itertools.product([(2, 3, 5), (8, 4, 130), (16, 1, 300)], [False, True]):
        torch.manual_seed(bins)
        x, raw, grad_y, grad_log = torch.randn(m, n) * 2, torch.randn(m, 3 * bins - 1, n), *torch.randn(2, m, n)
        x[0, :3] = torch.tensor([-BOUND, BOUND, 5.0])
        exact = [part.double().requires_grad_() for part in (x, raw)]
        truth = spline_formula(*exact, BOUND, inverse)[:2]
        gradients = torch.autograd.grad(truth, exact, [grad_y.double(), grad_log.double()])
        constants = spline._constants(raw, BOUND)
        wide = raw.transpose(1, 2).contiguous().transpose(1, 2)  # another order in memory
        for r in (raw, wide):
            found = spline_triton.spline(x, r, constants, inverse)
            found += spline_triton.spline_gradient(x, r, grad_y, grad_log, constants, inverse)
            for part, expected in zip(found, (*truth, *gradients), strict=True):
                torch.testing.assert_close(part.double(), expected, rtol=2e-3, atol=2e-3)
    empty = spline_triton.spline(torch.zeros(0, 4), torch.zeros(0, 5, 4), constants, False)
    assert empty[0].shape == empty[1].shape == (0, 4)


def check_group_norm():
    """In channels-last and other memory, for groups that fill chunks, share them or are single; also in bfloat16."""
    from loglik.cpu.groupnorm import plain_group_norm_silu
    from loglik.gpu.groupnorm import backward, forward

    for channels, groups, side in [(12, 3, 5), (32, 8, 4), (96, 4, 3), (200, 2, 4), (6, 6, 1 + 1)]:
        torch.manual_seed(channels)
        x, grad_y = torch.randn(2, 2, channels, side, side + 1) + 1
        scale, shift = torch.randn(2, 2, channels)
        exact = [part.double().requires_grad_() for part in (x, scale, shift)]
        truth = plain_group_norm_silu(*exact, groups, 1e-5)
        gradients = torch.autograd.grad(truth, exact, grad_y.double())
        for kind, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 6e-2)):
            y, mean, rstd = forward(x.to(kind), scale, shift, groups, 1e-5)
            found = backward(x.to(kind), scale, shift, mean, rstd, grad_y.to(kind), groups)
            assert y.dtype == found[0].dtype == kind and y.is_contiguous(memory_format=torch.channels_last)
            for part, expected in zip((y, *found), (truth, *gradients), strict=True):
                torch.testing.assert_close(
                    part.double(), expected, rtol=tolerance, atol=tolerance * expected.std().item()
                )


@needs("Triton")
def test_the_kernels_compute_the_formula():
    run_alone(
        "-c", "import os; os.environ['TRITON_INTERPRET'] = '1'; import test_spline_triton as t; t.check_kernels()"
    )


class Fake:
    """Stands for the module of kernels: it computes by the formula, and counts."""

    def __init__(self, fits=True):
        self.calls, self.accepts = [], fits

    def fits(self, x, raw):
        return self.accepts

    def spline(self, x, raw, constants, inverse):
        self.calls.append("map")
        return spline_formula(x, raw, constants[0], inverse)[:2]

    def spline_gradient(self, x, raw, grad_y, grad_log_slope, constants, inverse):
        self.calls.append("gradient")
        pull = torch.func.vjp(lambda x, raw: spline_formula(x, raw, constants[0], inverse)[:2], x, raw)[1]
        return pull((grad_y, grad_log_slope))


@pytest.mark.parametrize("inverse", [False, True])
def test_a_gpu_runs_the_kernels_where_they_fit_and_else_the_formula(monkeypatch, inverse):
    results = []
    for kernels in (Fake(), Fake(fits=False), None):
        monkeypatch.setattr(spline, "_kernel", lambda device, kernels=kernels: kernels)
        torch.manual_seed(0)
        x, raw = torch.randn(3, 40, requires_grad=True), torch.randn(3, 23, 40, requires_grad=True)
        y, log_slope = rational_quadratic_spline(x, raw, bound=BOUND, inverse=inverse)
        results.append([y, log_slope, *torch.autograd.grad((y.sin() + log_slope).sum(), (x, raw))])
        if kernels is not None:
            assert kernels.calls == (["map", "gradient"] if kernels.accepts else [])
    for one, two in itertools.combinations(results, 2):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_kernels_by_device():
    assert spline._kernel("cpu") is spline.spline_kernel and spline._kernel("meta") is None
    kernels = spline._kernel("cuda")
    x, raw = torch.zeros(2, 3), torch.zeros(2, 5, 3)
    assert not kernels.fits(x.double(), raw.double())
    assert not kernels.fits(x, raw), "the CPU has a kernel of its own"


if __name__ == "__main__":  # without checks on signatures
    os.environ["TRITON_INTERPRET"] = "1"
    check_kernels()
    check_group_norm()
