r"""Flows (autumn 2025, B2): log-determinants against autograd, layer by layer and composed, and the inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.density import Bound, embed
from loglik.flows import Continuous, Flow
from loglik.transforms import Transform
from loglik.verification.check import Finding, check, standard_error
from loglik.verification.subject import DoesNotApply, Subject
from loglik.verification.transform_calls import TransformCall, TransformCalls, double, record_calls

__all__ = ["composed_log_determinant", "inverse", "log_determinant"]

SECTION = "Autumn 2025, B2: likelihood"
EXAMPLES = 3
MAX_DIMS = 256  # of a Jacobian for each layer and example
MAX_DIMS_ONE = 1024  # of the Jacobian of one layer of a class, at one example
PROBES = 64  # draws of an estimated log-determinant
ROUNDING = 1e-6  # of float64
SINGLE = 1e-2  # of float32
SOLVER = 1e-2  # of the trace's integral in a few Runge-Kutta steps


@check(
    "log-determinant",
    section=SECTION,
    statement=r"\log p(x) = \log p(z) + \log \left\lvert \det \frac{\partial z}{\partial x} \right\rvert",
)
def log_determinant(subject: Subject) -> Iterator[Finding]:
    r"""The log-determinant of every layer is that of its Jacobian, which autograd computes.

    In float64, at the values that reach the layer. An estimate (of a continuous flow's trace) is compared by its mean
    over draws. A transform that draws noise has no Jacobian and is left out.
    """
    calls = record_calls(subject, EXAMPLES)
    layers, left_out = _layers(calls)
    if not layers:
        raise DoesNotApply(f"no Jacobian can be computed: {', '.join(left_out) or 'no transform was called'}")
    exact = [layer for layer in layers if layer.call.module.bound is Bound.EXACT]
    solved = [layer for layer in exact if isinstance(layer.call.module, Continuous)]
    direct = [layer for layer in exact if layer not in solved]
    if direct:
        yield _worst("largest relative error", direct, [layer.error() for layer in direct], ROUNDING)
        errors = [layer.error(_in_float32(subject, layer.call)) for layer in direct]
        yield _worst("the same in float32", direct, errors, SINGLE)
    if solved:
        yield _worst("largest relative error of a solver's", solved, [layer.error() for layer in solved], SOLVER)
    for layer in layers:
        if layer.call.module.bound is Bound.ESTIMATE:
            mean, error = _mean_estimate(layer.call)
            computed = f"mean of {PROBES} estimates less the exact one, {layer.call.label}"
            tolerance = SOLVER * max(1.0, abs(layer.exact[0].item()))
            yield Finding.equal(computed, mean - layer.exact[0].item(), 0, stderr=error, tolerance=tolerance)
    if left_out:
        yield Finding.reported(f"layers left out: {', '.join(left_out)}", len(left_out))


@check(
    "composed-log-determinant",
    section=SECTION,
    statement=r"\log \left\lvert \det \frac{\partial z_0}{\partial x} \right\rvert"
    r" = -\sum_{l=1}^L \log \left\lvert \det \frac{\partial f_l}{\partial z_{l-1}} \right\rvert",
)
def composed_log_determinant(subject: Subject) -> Iterator[Finding]:
    r"""The log-determinants of all layers sum to that of the composed map's Jacobian.

    For each flow of the model: the sum that its `encode` returns, less the terms of layers that are random or
    estimated, against autograd's Jacobian of all the others composed.
    """
    subject.modules(Flow)
    calls = record_calls(subject, EXAMPLES)
    reasons = []
    for call in calls.encoded.values():
        if not isinstance(call.module, Flow) or not len(call.module.transforms):
            continue
        layers = _run_of_exact(call.module, call.name, calls)
        x = layers[0].x if layers else call.x
        dims = math.prod(x.shape[1:])
        if not layers or not x.is_floating_point() or dims > MAX_DIMS_ONE:
            reason = (
                f"a Jacobian of {dims:,} dimensions is too large"
                if layers
                else "every layer draws noise or gives codes"
            )
            reasons.append(f"{call.label}: {reason}")
            continue
        yield _composed(call, layers, calls, EXAMPLES if dims <= MAX_DIMS else 1)
    if len(reasons) == sum(isinstance(call.module, Flow) for call in calls.encoded.values()):
        raise DoesNotApply("; ".join(reasons) or "no flow is evaluated by log_prob")


@check("inverse", section=SECTION, statement=r"f_l(f_l^{-1}(z_l)) = z_l, \quad f_l^{-1}(f_l(z_{l-1})) = z_{l-1}")
def inverse(subject: Subject) -> Iterator[Finding]:
    r"""Decoding inverts encoding, and encoding inverts decoding, for every layer and for the whole flow.

    In float64, at data and at samples. Where `encode` draws noise, `decode` takes it off again, exactly.
    """
    calls = record_calls(subject, 8)
    data, samples = [], []
    for call in calls.encoded.values():
        if not call.output.is_floating_point():
            continue  # codes, from which `decode` draws
        with torch.no_grad(), double():
            data.append((call.label, _distance(call.decode(call.output, call.context), call.x)))
    for call in calls.decoded.values():
        if _draws(call.module) or not call.x.is_floating_point():
            continue
        with torch.no_grad(), double():
            samples.append((call.label, _distance(call.encode(call.output, call.context)[0], call.x)))
    if not data and not samples:
        raise DoesNotApply("its transforms give codes, whose decoding draws at random")
    for computed, errors in (("|decode(encode(x)) - x|, data", data), ("|encode(decode(z)) - z|, samples", samples)):
        if errors:
            where, worst = max(errors, key=lambda pair: _rank(pair[1]))
            yield Finding.equal(f"largest {computed}, {len(errors)} maps, at {where}", worst, 0, tolerance=ROUNDING)


@dataclass(frozen=True)
class _Layer:
    """A call, with the log-determinant by autograd at its first rows."""

    call: TransformCall
    exact: Float[Tensor, " B"]

    def error(self, log_det: Tensor | None = None) -> float:
        """Return the largest relative error of a log-determinant, that of the call by default."""
        found = self.call.log_det if log_det is None else log_det
        assert found is not None
        found = found[: len(self.exact)].double()
        return ((found - self.exact).abs() / self.exact.abs().clamp_min(1)).max().item()


def _layers(calls: TransformCalls) -> tuple[list[_Layer], list[str]]:
    """Return the layers whose Jacobian is computed, and in words those that are left out."""
    layers, left_out, classes = [], [], set()
    for call in calls.encoded.values():
        if isinstance(call.module, Flow):
            continue
        dims = math.prod(call.x.shape[1:])
        large = dims > MAX_DIMS
        if _draws(call.module) or not (call.x.is_floating_point() and call.output.is_floating_point()):
            left_out.append(f"{call.label} draws noise" if call.output.is_floating_point() else f"{call.label}: codes")
        elif large and (dims > MAX_DIMS_ONE or type(call.module) in classes):
            left_out.append(f"{call.label}: {dims:,} dimensions")
        else:
            if large:
                classes.add(type(call.module))
            layers.append(_Layer(call, log_abs_det(call.encode, call.x[: 1 if large else None], call.context)))
    return layers, left_out


def log_abs_det(
    encode: Callable[..., tuple[Tensor, Tensor]], x: Float[Tensor, "B ..."], context: Tensor | None
) -> Float[Tensor, " B"]:
    r"""Return $\log\lvert\det \partial z / \partial x\rvert$ of each row by autograd, infinite where z has other dims.

    Each row is repeated D times, and the d-th repetition gives the d-th row of its Jacobian: one backward pass for all.
    """
    b, dims = len(x), math.prod(x.shape[1:])
    rows = x.detach().repeat_interleave(dims, 0).requires_grad_()
    given = None if context is None else context[:b].repeat_interleave(dims, 0)
    with torch.enable_grad(), double():
        z = encode(rows, given)[0].reshape(b, dims, -1)
        if z.shape[2] != dims:
            return torch.full((b,), torch.inf, dtype=torch.float64)
        (jacobian,) = torch.autograd.grad(z.diagonal(dim1=1, dim2=2).sum(), rows)
    return torch.linalg.slogdet(jacobian.reshape(b, dims, dims))[1]


def _composed(call: TransformCall, layers: Sequence[TransformCall], calls: TransformCalls, rows: int) -> Finding:
    assert isinstance(call.module, Flow) and call.log_det is not None
    inside = {layer.name for layer in layers}
    named = [calls.encoded[_child(call.name, number)] for number in range(len(call.module.transforms))]
    total = call.log_det.double()
    for other in named:
        if other.name not in inside:
            assert other.log_det is not None
            total = total - other.log_det
    with torch.no_grad():
        vector = embed(call.module.context, call.context)

    def composed(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in layers:
            x, log_det = layer.encode(x, context)
        return x, log_det

    exact = log_abs_det(composed, layers[0].x[:rows], vector)
    error = ((total[: len(exact)] - exact).abs() / exact.abs().clamp_min(1)).max().item()
    solved = any(isinstance(layer.module, Continuous) for layer in layers)
    computed = f"largest relative error, {len(layers)} of {len(named)} layers of {call.label}, D = {_dims(layers[0])}"
    return Finding.equal(computed, error, 0, tolerance=SOLVER if solved else ROUNDING)


def _run_of_exact(flow: Flow, name: str, calls: TransformCalls) -> list[TransformCall]:
    """Return the longest run of a flow's transforms that are deterministic, with exact log-determinants."""
    runs: list[list[TransformCall]] = [[]]
    for number, transform in enumerate(flow.transforms):
        call = calls.encoded[_child(name, number)]
        if transform.bound is Bound.EXACT and call.output.is_floating_point():
            runs[-1].append(call)
        else:
            runs.append([])
    return max(runs, key=len)


def _child(name: str, number: int) -> str:
    return f"{name}.transforms.{number}".lstrip(".")


def _dims(call: TransformCall) -> int:
    return math.prod(call.x.shape[1:])


def _draws(module: Transform | Flow) -> bool:
    """Whether `encode` draws noise that `decode` takes off."""
    transforms = module.transforms if isinstance(module, Flow) else [module]
    return any(transform.bound is Bound.LOWER for transform in transforms)


def _worst(computed: str, layers: Sequence[_Layer], errors: Sequence[float], tolerance: float) -> Finding:
    worst = max(range(len(errors)), key=lambda n: _rank(errors[n]))
    dims = max(_dims(layer.call) for layer in layers)
    computed = f"{computed}, {len(layers)} layers, D ≤ {dims}, at {layers[worst].call.label}"
    return Finding.equal(computed, errors[worst], 0, tolerance=tolerance)


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _in_float32(subject: Subject, call: TransformCall) -> Tensor:
    """Return the log-determinant by the model's own transform, at the same values."""
    transform = subject.density.get_submodule(call.name)
    context = call.context
    context = context.float() if context is not None and context.is_floating_point() else context
    with torch.no_grad():
        return transform.encode(call.x.float(), context)[1]  # type: ignore[operator]


def _mean_estimate(call: TransformCall) -> tuple[float, float]:
    """Return the mean of an estimated log-determinant of the first row over draws, with its standard error."""
    context = None if call.context is None else call.context[:1].expand(PROBES, -1)
    with torch.no_grad(), double():
        draws = call.encode(call.x[:1].expand(PROBES, *call.x.shape[1:]), context)[1].double()
    return draws.mean().item(), standard_error(draws)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest distance relative to the largest value of each dimension."""
    found, expected = found.double(), expected.double()
    size = expected.abs().amax(0)
    return ((found - expected).abs() / torch.where(size > 0, size, torch.ones_like(size))).max().item()
