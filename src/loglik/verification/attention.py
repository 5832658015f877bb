r"""Attention (the notes, "Transformers and attention"), on a model's own attention layers.

$\text{Attention}(Q, K, V) = \text{softmax}(QK^\top / \sqrt{d_k}) V$. The weights are read where the model computes
them: the softmax operations that run inside its attention layers, of T queries and S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.inspection import fit_power, permutation_errors, sequence_cost
from loglik.inspection.counts import FlopCount
from loglik.inspection.layers import evaluating
from loglik.inspection.permutation import POSITION
from loglik.networks.attention import CrossAttention, SelfAttention
from loglik.verification.calls import calls, loss_of
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject
from loglik.verification.weights import SOFTMAX, weights_of

__all__ = ["attention_cost", "heads_differ", "permutation", "softmax_rows"]

SECTION = "Transformers and attention"
ROUNDING = 1e-4
MIN_ORDER = 1e-4  # relative change of the output by the order, with positions
MIN_APART = 1e-5  # total variation between two heads: rounding is 100 times smaller
LENGTHS = (127, 251, 509)  # primes, so that no width is one of them
TIMED = (512, 2048)  # below them, time is what a call costs


@check(
    "softmax-rows",
    section=SECTION,
    statement=r"A = \text{softmax}\left(QK^\top / \sqrt{d_k}\right), \quad \sum_s A_{ts} = 1",
)
def softmax_rows(subject: Subject) -> Iterator[Finding]:
    """Each query takes from the keys with weights that are not negative and sum to 1, row by row."""
    found = weights_of(subject)
    layers = len({w.layer for w in found})
    total = max(float((w.values.double().sum(-1) - 1).abs().max()) for w in found)
    least = min(float(w.values.min()) for w in found)
    yield Finding.equal(f"largest |sum of a row - 1|, {_counted(layers)}", total, 0, tolerance=ROUNDING)
    yield Finding.at_least("smallest weight", least, 0)
    causal = [w for w in found if getattr(w.module, "causal", False) is True]
    if causal:
        later = max(float(w.values.triu(1 + w.values.shape[-1] - w.values.shape[-2]).max()) for w in causal)
        yield Finding.equal(f"largest weight of a later position, {_counted(len(causal))} causal", later, 0)


@check("permutation", section=SECTION, statement=r"f(PX) = P f(X), \quad f(PX + PE) \ne P f(X + PE)")
def permutation(subject: Subject) -> Iterator[Finding]:
    """Permuting the sequence permutes the output of attention without positions, and does not with them.

    Masks are taken off for it: a causal mask tells positions apart by itself, and padding would have to move along.
    """
    density, call = subject.density, loss_of(subject)
    weights_of(subject)
    with _unmasked(density) as masked:
        found = permutation_errors(density, call, seed=subject.seed)
    if not found:
        raise DoesNotApply("no attention layer maps a sequence (B, T, E) to a sequence of the same shape")
    off = ", masks taken off" if masked else ""
    for part in found:
        computed = f"relative error of {part.layer} without positions{off}"
        yield Finding.equal(computed, part.without, 0, tolerance=ROUNDING)
    causal = any(getattr(module, "causal", False) is True for module in masked)
    for part in found:
        computed = f"relative error of {part.layer} with the model's positions{off}"
        if part.with_positions is not None:
            yield Finding.at_least(computed, part.with_positions, MIN_ORDER)
        elif not causal and _positions_are_zero(density):
            yield Finding.at_least(computed + ", which are all zero", 0.0, MIN_ORDER)
    if causal:
        with_mask = permutation_errors(density, call, seed=subject.seed)
        for part in with_mask[-1:]:
            computed = f"relative error of {part.layer} without positions, under its causal mask"
            yield Finding.at_least(computed, part.without, MIN_ORDER)


@check(
    "attention-cost",
    section=SECTION,
    statement=r"QK^\top: O(n^2 d_k) \text{ time}, \; O(n^2) \text{ memory}; \quad \text{RNN}: O(n d^2), \; "
    r"\text{convolution}: O(k n d^2)",
)
def attention_cost(subject: Subject) -> Iterator[Finding]:
    """Attention costs time and memory by the square of the length; a recurrence and a convolution by the length.

    Exponents p of $c\\,n^p$ are fitted to counts: FLOPs, and bytes held for the backward pass. Times are reported.
    """
    layer, name, width = _self_attention(subject)
    flops, numbers, whole = [], [], []
    for n in LENGTHS:
        counter, every = _Products(n), FlopCount()
        with torch.no_grad(), evaluating(subject.density, subject.seed), sdpa_kernel(SDPBackend.MATH), every, counter:
            layer(torch.randn(1, n, width, device=subject.density.device))
        flops.append(float(counter.total))
        numbers.append(float(counter.weights))
        whole.append(float(every.total))
    yield _exponent(f"FLOPs of QKᵀ and AV of {name}", flops, 2)
    yield _exponent(f"numbers in the softmax of {name}", numbers, 2)
    law = fit_power(LENGTHS, whole)
    yield Finding.reported(f"exponent of n of all FLOPs of {name}, width {width}", law.p)
    costs = sequence_cost(TIMED, width=min(width, 64), repeats=1, seed=subject.seed)
    for cost in costs:
        if cost.kind in ("convolution", "recurrence"):
            computed = f"exponent of n, FLOPs of a {cost.kind}"
            yield Finding.equal(computed, cost.flops_law.p, 1, tolerance=0.01)
            yield Finding.equal(f"exponent of n, memory of a {cost.kind}", cost.saved_law.p, 1, tolerance=0.1)
    for cost in costs:
        words = "attention, fused" if cost.kind == "attention" else cost.kind
        computed = f"exponent of n of the measured time, {words}, n = {TIMED[0]} and {TIMED[-1]}"
        yield Finding.reported(computed, cost.law.p)


@check(
    "heads-differ",
    section=SECTION,
    statement=r"\text{head}_i = \text{Attention}(QW_i^Q, KW_i^K, VW_i^V), \quad A_i \ne A_j",
)
def heads_differ(subject: Subject) -> Iterator[Finding]:
    r"""The heads of a layer attend differently: each has maps of its own.

    The distance of two heads is the total variation $\frac12 \sum_s \lvert A_i - A_j \rvert$, averaged over queries.
    """
    layers = {w.layer: w.heads for w in weights_of(subject) if w.values.shape[-1] > 1}
    several = {name: heads for name, heads in layers.items() if heads is not None and heads.shape[1] > 1}
    if not several:
        raise DoesNotApply("no attention layer of this model has several heads and several keys")
    distances = [
        float((heads[:, i] - heads[:, j]).abs().sum(-1).div(2).mean())
        for heads in several.values()
        for i, j in combinations(range(heads.shape[1]), 2)
    ]
    computed = f"smallest distance of two heads of a layer, {_counted(len(several))}"
    yield Finding.at_least(computed, min(distances), MIN_APART)
    yield Finding.reported("largest distance of two heads of a layer", max(distances))


class _Products(FlopCount):
    """Counts the FLOPs of matrix products with an n × n matrix, and the numbers in n × n softmaxes."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.weights = n, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.total
        out = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
        if not any(t.shape[-2:] == (self.n, self.n) for t in tensors):
            self.total = before
        elif func.overloadpacket in SOFTMAX:
            self.weights += out.numel()
        return out


def _self_attention(subject: Subject) -> tuple[Callable[[Tensor], Any], str, int]:
    """The first layer that maps a sequence to itself by attention, as a function of the sequence, and its width."""
    names = {w.layer for w in weights_of(subject)}
    for call in calls(subject):
        module = call.module
        if call.name not in names or isinstance(module, CrossAttention) or call.x.dim() != 3:
            continue
        if isinstance(module, nn.MultiheadAttention):
            if call.args[1:2] and call.args[0].shape == call.args[1].shape and module.kdim == module.embed_dim:
                return _multihead(module), call.name, call.x.shape[-1]
            continue
        try:
            with torch.no_grad(), evaluating(subject.density):
                module(torch.randn(1, LENGTHS[0], call.x.shape[-1], device=call.x.device))
        except (RuntimeError, ValueError, TypeError, AssertionError):
            continue
        return module, call.name, call.x.shape[-1]
    raise DoesNotApply("no attention layer of this model runs by itself on sequences of other lengths")


def _multihead(module: nn.MultiheadAttention) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        x = x if module.batch_first else x.transpose(0, 1)
        return module(x, x, x, need_weights=False)

    return run


@contextmanager
def _unmasked(density: nn.Module) -> Iterator[list[nn.Module]]:
    """Run the attention layers without masks; the list fills with those that had one."""
    masked: list[nn.Module] = []
    handles, causal = [], []

    def without(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = 1 if isinstance(module, SelfAttention) else 3  # masks come behind x, or behind queries, keys and values
        dropped = [v for v in (*args[own : own + 1], *(v for k, v in kwargs.items() if "mask" in k)) if v is not None]
        if dropped or kwargs.get("is_causal"):
            masked.append(module)
        kept = {k: None if "mask" in k else v for k, v in kwargs.items() if k != "is_causal"}
        args = (*args[:own], *[None] * len(args[own : own + 1]), *args[own + 1 :])
        return args, kept

    for module in density.modules():
        if isinstance(module, (SelfAttention, nn.MultiheadAttention)):
            handles.append(module.register_forward_pre_hook(without, with_kwargs=True))
        if isinstance(module, SelfAttention) and module.causal:
            causal.append(module)
            module.causal = False
    masked.extend(causal)
    try:
        yield masked
    finally:
        for handle in handles:
            handle.remove()
        for module in causal:
            module.causal = True


def _positions_are_zero(density: nn.Module) -> bool:
    """Whether the model has positions, and all are zero."""
    held = [
        tensor
        for name, tensor in (*density.named_parameters(), *density.named_buffers())
        if POSITION.search(name) and tensor.is_floating_point()
    ]
    return bool(held) and not any(bool(tensor.any()) for tensor in held)


def _exponent(what: str, values: list[float], expected: float) -> Finding:
    return Finding.equal(f"exponent of n, {what}", fit_power(LENGTHS, values).p, expected, tolerance=0.01)


def _counted(layers: int) -> str:
    return f"{layers} layer{'s' * (layers > 1)}"
