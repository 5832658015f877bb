r"""Gradients over depth (the notes, "Convolutional and deep networks"): the chain rule and what shortcuts change.

$\frac{\partial L}{\partial x_1} = \frac{\partial L}{\partial x_n} \frac{\partial x_n}{\partial x_{n-1}} \cdots
\frac{\partial x_2}{\partial x_1}$, where each layer of a chain receives what the one before it returned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.cpu.private import tree_leaves, tree_map
from loglik.inspection import singular_values
from loglik.verification.calls import Call, recorded, rerun
from loglik.verification.check import Finding, check
from loglik.verification.shortcuts import counted, shortcuts_of, sums_of
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["gradient_norms", "jacobian_product"]

SECTION = "Convolutional and deep networks"
ROUNDING = 1e-3
STEP = 1e-6  # of finite differences, relative to the norm of the input, in float64
DIRECTIONS = 4
EXAMPLES = 2  # in a chain of layers
SPECTRA = 4  # layers whose singular values are computed
TRIES = 16  # chains that are tried
LAYERS, WIDTH = 24, 32  # of the new stack
SHORTCUT = 1.0  # the factor of its shortcuts


@check(
    "jacobian-product",
    section=SECTION,
    statement=r"\frac{\partial L}{\partial x_1} = \frac{\partial L}{\partial x_n} "
    r"\frac{\partial x_n}{\partial x_{n-1}} \cdots \frac{\partial x_2}{\partial x_1}",
)
def jacobian_product(subject: Subject) -> Iterator[Finding]:
    r"""The gradient at a layer is the last gradient times the Jacobians of the layers between.

    Each layer of a chain in the model runs by itself in float64. Its Jacobian is applied from the left by autograd, and
    from the right by finite differences, $J v \approx (f(x + \epsilon v) - f(x - \epsilon v)) / 2 \epsilon$.
    The spectral norm of a large Jacobian comes from 12 steps of the Lanczos iteration, from below.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # whose second derivatives singular values take
        loss, found = recorded(subject, examples=EXAMPLES)
        chain, first, last = _chain(loss, [call for call in found if _differentiable(call)])
        spectra = [singular_values(call.y, call.x, exact=64, iterations=12) for call in _weighted(chain)[:SPECTRA]]
        layers = [_double(call) for call in chain]
        _check_precision(layers)
        product = last.double()
        for call in reversed(layers):
            product = _from_left(call, product)
        directions = [first.double(), *(torch.randn_like(first.double()) for _ in range(DIRECTIONS - 1))]
        expected = torch.stack([(first.double() * v).sum() for v in directions])
        moved = torch.stack([(last.double() * _from_right(layers, v)).sum() for v in directions])
    where = f"{len(chain)} layers from {chain[0].name} to {chain[-1].name}"
    error = _relative(first, product)
    yield Finding.equal(f"relative error of the product of Jacobians, {where}", error, 0, tolerance=ROUNDING)
    error = _relative(expected, moved)
    yield Finding.equal(f"the same by finite differences, {DIRECTIONS} directions", error, 0, tolerance=ROUNDING)
    largest = [s.largest for s in spectra if s is not None]
    if largest:
        yield Finding.reported(f"spectral norm of a layer's Jacobian, smallest of {len(largest)} layers", min(largest))
        yield Finding.reported(f"spectral norm of a layer's Jacobian, largest of {len(largest)} layers", max(largest))


@check(
    "gradient-norms",
    section=SECTION,
    statement=r"\prod_i \frac{\partial \mathcal F_i}{\partial x_i} \to 0 \text{ or } \infty, \quad "
    r"\prod_i \left(\frac{\partial \mathcal F_i}{\partial x_i} + 1\right)",
)
def gradient_norms(subject: Subject) -> Iterator[Finding]:
    r"""Gradients vanish or explode over many layers, and less so with shortcuts.

    A new stack of 24 tanh layers runs on the data, plain and with shortcuts. Then this model: the norm of the gradient
    where its first shortcut starts, by that where its last one ends, as it is and with its shortcuts left out.
    """
    subject.needs_layers()
    x = _features(subject)
    plain, residual = (_orders(x, shortcut, subject.seed) for shortcut in (False, True))
    stack = f"powers of 10 by which the gradient changes over {LAYERS} new tanh layers"
    yield Finding.reported(f"{stack}, plain", plain)
    yield Finding.reported(f"{stack}, with shortcuts", residual)
    yield Finding.at_most("size of the latter by the former", abs(residual / plain), 0.5)
    loss, found = shortcuts_of(subject)
    if not found:
        return
    with_them = _change(loss, found[0].x, found[-1].out)
    if with_them is not None:
        where = f"from {found[-1].block} back to {found[0].block}, {counted(found)}"
        yield Finding.reported(f"factor by which this model's gradient changes {where}", with_them)
    loss, plain_sums = sums_of(subject, {s.number: s.second for s in found})
    ends = {s.number: s for s in plain_sums}
    first, last = ends.get(found[0].number), ends.get(found[-1].number)
    if first is None or last is None:
        return
    without = _change(loss, first.a if found[0].second else first.b, last.out)
    if without is not None:
        yield Finding.reported("the same with its shortcuts left out", without)


def _chain(loss: Tensor, found: list[Call]) -> tuple[list[Call], Tensor, Tensor]:
    """The longest chain of layers through which all that its first input does to the loss goes, and the two gradients.

    Raises DoesNotApply where there is none of two layers with weights.
    """
    tries = 0
    for chain in _chains(found):
        while len(_weighted(chain)) > 1 and tries < TRIES:
            tries += 1
            x, y = chain[0].x, chain[-1].y
            first, last = torch.autograd.grad(loss, [x, y], retain_graph=True, allow_unused=True)
            if first is not None and last is not None and bool(first.any()) and _is_trunk(loss, chain):
                return chain, first, last
            chain = chain[1:]
    raise DoesNotApply("no two layers with weights follow one another on the only way to the loss")


def _chains(found: list[Call]) -> list[list[Call]]:
    """For each tensor the chain of most layers with weights that ends in it, the longest chains first."""
    order: dict[int, int] = {}
    for call in found:
        order.setdefault(id(call.y), len(order))
    best: dict[int, list[Call]] = {}
    for call in sorted(found, key=lambda call: order[id(call.y)]):
        chain = [*best.get(id(call.x), []), call]
        if _length(chain) > _length(best.get(id(call.y), [])):
            best[id(call.y)] = chain
    return sorted(best.values(), key=_length, reverse=True)


def _length(chain: list[Call]) -> tuple[int, int]:
    """The number of layers with weights, and of their weights: blocks come before the layers within a block."""
    return len(_weighted(chain)), sum(p.numel() for call in chain for p in call.module.parameters())


def _weighted(chain: list[Call]) -> list[Call]:
    return [call for call in chain if any(True for _ in call.module.parameters())]


def _differentiable(call: Call) -> bool:
    x, y = call.x, call.y
    return x is not y and x.requires_grad and y.requires_grad and x.is_floating_point() and x.dim() > 1


def _is_trunk(loss: Tensor, chain: list[Call]) -> bool:
    """Whether the first input reaches the loss through the last output only, and each layer through its first input."""
    x, y = chain[0].x, chain[-1].y
    for call in chain:
        for leaf in tree_leaves((call.args, call.kwargs)):
            if isinstance(leaf, Tensor) and leaf is not call.x and leaf.requires_grad:
                (other,) = torch.autograd.grad(leaf.sum(), x, retain_graph=True, allow_unused=True)
                if other is not None:
                    return False
    cut = y.register_hook(torch.zeros_like)
    try:
        (around,) = torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)
    finally:
        cut.remove()
    return around is None or not bool(around.any())


def _double(call: Call) -> Call:
    """The call in float64, by a copy of its module and without the graph."""

    def convert(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        return copies.setdefault(id(leaf), leaf.detach().double() if leaf.is_floating_point() else leaf.detach())

    copies: dict[int, Tensor] = {}
    args, kwargs, output = tree_map(convert, (call.args, call.kwargs, call.output))
    return Call(call.name, copy.deepcopy(call.module).double().eval(), args, kwargs, output)


def _check_precision(layers: list[Call]) -> None:
    """Raise DoesNotApply where a layer does not run in float64, which finite differences need."""
    for call in layers:
        try:
            with torch.no_grad():
                double = rerun(call, call.x).dtype == torch.float64
        except RuntimeError:
            double = False
        if not double:
            raise DoesNotApply(f"{call.name} does not run in float64, which finite differences need")


def _from_left(call: Call, gradient: Tensor) -> Tensor:
    """The gradient at the layer's output times its Jacobian."""
    x = call.x.clone().requires_grad_()
    return torch.autograd.grad(rerun(call, x), x, gradient)[0]


def _from_right(layers: list[Call], v: Tensor) -> Tensor:
    """The Jacobians of the layers, the first one first, times a direction, by finite differences."""
    with torch.no_grad():
        for call in layers:
            size = STEP * float(call.x.norm().clamp_min(1)) / max(float(v.norm()), 1e-300)
            v = (rerun(call, call.x + size * v) - rerun(call, call.x - size * v)) / (2 * size)
    return v


def _change(loss: Tensor, first: Tensor, last: Tensor) -> float | None:
    """The norm of the gradient at the first tensor by that at the last; None where there is no gradient."""
    pair = torch.autograd.grad(loss, [first, last], retain_graph=True, allow_unused=True)
    norms = [0.0 if g is None else float(g.double().norm()) for g in pair]
    return norms[0] / norms[1] if norms[1] > 0 and math.isfinite(norms[0] / norms[1]) else None


def _features(subject: Subject) -> Float[Tensor, "B D"]:
    """The data as standardised numbers; noise in the place of tokens, and of columns with values that are missing."""
    x = subject.examples.x[:].flatten(1).cpu().double()
    if subject.data.spec.kind == "text":
        return torch.randn(len(x), WIDTH, dtype=torch.float64)
    x = torch.where(x.isfinite().all(0), x, torch.randn_like(x))
    std = x.std(0)
    return (x - x.mean(0)) / torch.where(std > 0, std, torch.ones_like(std))


def _orders(x: Float[Tensor, "B D"], shortcut: bool, seed: int) -> float:
    """The logarithm, base 10, of the norm of the gradient at the first layer's output by that at the last layer's."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layers = [nn.Linear(x.shape[1], WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS - 1))]
        outputs = [layers[0].double()(x).tanh()]
        for layer in layers[1:]:
            h = layer.double()(outputs[-1]).tanh()
            outputs.append(SHORTCUT * outputs[-1] + h if shortcut else h)
        norms = [g.norm() for g in torch.autograd.grad(outputs[-1].square().mean(), [outputs[0], outputs[-1]])]
    return math.log10(norms[0] / norms[1])


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-300))
