"""The spline's kernel against its formula in tensor operations."""

import pytest
import torch

from helpers.needs import needs
from loglik.cpu import spline_kernel as kernel
from loglik.flows import rational_quadratic_spline
from loglik.flows.spline import parameters_per_dim, spline_formula

CAPABILITY = torch.backends.cpu.get_cpu_capability()
needs_kernel = needs("the spline's kernel")


@needs("a C compiler", "an x86 CPU with AVX2")
def test_the_kernel_is_there_where_a_compiler_is():
    """Without it every other test here is skipped. If this fails, reinstall (`make setup`) and read pip's warnings."""
    assert kernel.LIBRARY is not None


def numbers(m: int, bins: int, n: int, scale: float = 1.0):
    """Return numbers, some beyond ±3 and some at the ends, raw parameters, and weights of the two outputs."""
    x, raw = 2 * torch.randn(m, n), scale * torch.randn(m, parameters_per_dim(bins), n)
    ends = torch.tensor([-3.0, 3.0, 1e6, -1e6])[: x.numel()]
    x.view(-1)[: len(ends)] = ends
    return x, raw, torch.randn(2, m, n)


def outputs_and_gradients(function, x, raw, weights, inverse):
    x, raw = x.detach().requires_grad_(), raw.detach().requires_grad_()
    outputs = function(x, raw, inverse)
    return *outputs, *torch.autograd.grad(outputs, (x, raw), tuple(weights.to(x.dtype)))


def by_operations(x, raw, inverse):
    return spline_formula(x, raw, 3.0, inverse)[:2]


def by_kernel(x, raw, inverse):
    assert kernel.fits(x, raw)
    return rational_quadratic_spline(x, raw, bound=3.0, inverse=inverse)


@pytest.fixture(params=["AVX2", "AVX512"] if CAPABILITY == "AVX512" else [CAPABILITY])
def each_library(request, monkeypatch):
    """The kernel for this CPU, and those for older ones."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    monkeypatch.setattr(kernel, "LIBRARY", kernel._load())


@needs_kernel
@pytest.mark.usefixtures("each_library")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("m", "bins", "n"), [(3, 8, 64), (2, 2, 16), (5, 5, 37), (1, 8, 1), (7, 3, 15), (1, 64, 33)])
def test_the_kernel_is_the_formula(m, bins, n, inverse):
    x, raw, weights = numbers(m, bins, n)
    truth = outputs_and_gradients(by_operations, x.double(), raw.double(), weights, inverse)
    for name, ours, true in zip(
        ("y", "log-slope", "gradient by x", "gradient by raw"),
        outputs_and_gradients(by_kernel, x, raw, weights, inverse),
        truth,
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), true, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@needs_kernel
@pytest.mark.parametrize("inverse", [False, True])
def test_the_kernel_is_as_exact_as_the_operations(inverse):
    """With steep bins, whose rounding errors are large."""
    x, raw, weights = numbers(4, 8, 512, scale=3.0)
    truth = outputs_and_gradients(by_operations, x.double(), raw.double(), weights, inverse)
    errors = []
    for function in (by_kernel, by_operations):
        found = outputs_and_gradients(function, x, raw, weights, inverse)
        pairs = zip(found, truth, strict=True)
        errors.append([((a.double() - b).abs() / (1 + b.abs())).quantile(0.99).item() for a, b in pairs])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 2 * theirs + 1e-6


@needs_kernel
def test_extreme_parameters_stay_finite():
    x, raw, weights = numbers(2, 8, 32)
    for value in (-1e4, 1e4):
        raw[0, ::3] = value
        for inverse in (False, True):
            found = outputs_and_gradients(by_kernel, x, raw, weights, inverse)
            assert all(part.isfinite().all() for part in found)


@needs_kernel
def test_what_is_not_a_number_stays_so():
    x, raw, _ = numbers(1, 4, 20)
    x[0, 7], raw[0, 3, 9] = torch.nan, torch.nan
    y, _ = by_kernel(x, raw, False)
    assert y[0].isnan().nonzero().flatten().tolist() == [7, 9]


@needs_kernel
def test_parameters_of_any_strides():
    """Raw parameters may be a slice of a larger tensor, out of order in memory, or expanded."""
    x, raw, weights = numbers(3, 4, 40)
    wide = torch.cat([raw, raw, raw], 1)
    expected = outputs_and_gradients(by_kernel, x, raw, weights, False)
    for part in (wide[:, 11:22], raw.transpose(1, 2).contiguous().transpose(1, 2)):
        for ours, true in zip(outputs_and_gradients(by_kernel, x, part, weights, False), expected, strict=True):
            torch.testing.assert_close(ours, true, atol=0, rtol=0)
    same = raw[:1].expand(3, -1, -1)
    y, log_slope = by_kernel(x, same, False)
    for row in range(3):
        alone = by_kernel(x[row : row + 1], raw[:1], False)
        torch.testing.assert_close(torch.stack([y[row], log_slope[row]]), torch.cat(alone), atol=0, rtol=0)


@needs_kernel
def test_an_empty_batch():
    x, raw, weights = numbers(0, 4, 5)
    assert [part.shape for part in outputs_and_gradients(by_kernel, x, raw, weights, False)] == [
        (0, 5),
        (0, 5),
        (0, 5),
        (0, 11, 5),
    ]


@needs_kernel
def test_threads_change_nothing(monkeypatch):
    x, raw, weights = numbers(5, 4, 21)
    alone = outputs_and_gradients(by_kernel, x, raw, weights, True)
    monkeypatch.setattr(kernel, "SINGLE_THREAD_PARAMETERS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for ours, true in zip(outputs_and_gradients(by_kernel, x, raw, weights, True), alone, strict=True):
        torch.testing.assert_close(ours, true, atol=0, rtol=0)


def test_without_the_kernel_operations_give_the_same(monkeypatch):
    x, raw, weights = numbers(3, 6, 50)
    ours = lambda x, raw, inverse: rational_quadratic_spline(x, raw, bound=3.0, inverse=inverse)  # noqa: E731
    for inverse in (False, True):
        here = outputs_and_gradients(ours, x, raw, weights, inverse)
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "LIBRARY", None)
            without = outputs_and_gradients(ours, x, raw, weights, inverse)
        for one, other in zip(here, without, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


@needs_kernel
def test_float64_half_and_transforms_run_as_operations():
    x, raw, _ = numbers(1, 4, 5)
    assert kernel.fits(x, raw)
    assert not kernel.fits(x.double(), raw.double())
    assert not kernel.fits(x.bfloat16(), raw.bfloat16())
    each = torch.func.vmap(lambda x, raw: rational_quadratic_spline(x, raw, bound=3.0))
    y, _ = each(x.expand(2, 1, 5), raw.expand(2, 1, 11, 5))
    torch.testing.assert_close(y[0], by_kernel(x, raw, False)[0], atol=1e-5, rtol=1e-5)


@needs_kernel
def test_the_compiler_sees_what_the_kernel_gives():
    """Its shapes and strides are those of the results, also for few events, whose rows are padded."""
    for n in (5, 40):
        x, raw, weights = numbers(2, 4, n)
        constants = [3.0, 6e-3, 6 - 4 * 6e-3, 1e-3, 0.54]
        for op, inputs in (
            (kernel._spline_compiled, (x, raw)),
            (kernel._gradient_compiled, (x, raw, *weights)),
        ):
            torch.library.opcheck(op, (*inputs, constants, False), test_utils=("test_schema", "test_faketensor"))
