r"""Shortcuts (the notes, "Convolutional and deep networks"): $H(x) = \mathcal F(x) + x$, as a model computes it.

A shortcut is an addition $a + b$ in which b is computed from a with weights: a is x and b is $\mathcal F(x)$. In a
block of a list of blocks it is also one in which a is computed from the block's input without weights, as $x / 2$ is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loglik.inspection.layers import evaluating, first_tensor, hooked
from loglik.verification.calls import loss_of
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["Shortcut", "Sum", "Sums", "counted", "shortcut", "shortcuts_of", "sums_of"]

SECTION = "Convolutional and deep networks"
ADDITIONS = ("add", "__add__", "__radd__", "__iadd__")
ROUNDING = 1e-4


@dataclass(frozen=True)
class Sum:
    """An addition of two tensors of one shape.

    Attributes:
        number: among the additions of a run.
        block: the name of the module that adds, and `x`, what that received.
        a, b, out: the operands and the sum.
    """

    number: int
    block: str
    x: Tensor | None
    a: Tensor
    b: Tensor
    out: Tensor


@dataclass(frozen=True)
class Shortcut:
    """An addition of a shortcut to a branch.

    Attributes:
        number, block: of the addition; see `Sum`.
        x: where the shortcut starts.
        branch: $\\mathcal F(x)$.
        out: $H(x)$, before an activation that may follow.
        second: whether the branch is the second operand.
    """

    number: int
    block: str
    x: Tensor
    branch: Tensor
    out: Tensor
    second: bool


@check(
    "shortcut",
    section=SECTION,
    statement=r"\frac{\partial H}{\partial x} = \frac{\partial \mathcal F}{\partial x} + 1",
)
def shortcut(subject: Subject) -> Iterator[Finding]:
    r"""The Jacobian of a residual block is the Jacobian of its branch plus the identity.

    Both are applied to a random vector v, as $v^\top J$, at the model's own blocks and data.
    """
    _, found = shortcuts_of(subject)
    if not found:
        raise DoesNotApply("this model has no block that adds its input to what it computes from it")
    worst, kept, alone = 0.0, [], []
    for s in found:
        v = torch.randn_like(s.out)
        (whole,) = torch.autograd.grad(s.out, s.x, v, retain_graph=True)
        (branch,) = torch.autograd.grad(s.branch, s.x, v, retain_graph=True)
        whole, branch, v = (t.double() for t in (whole, branch, v))
        worst = max(worst, float((whole - branch - v).norm() / (v.norm() + branch.norm())))
        kept.append(float(whole.norm() / v.norm()))
        alone.append(float(branch.norm() / v.norm()))
    computed = f"largest relative error of ∂H/∂x - ∂F/∂x against the identity, {counted(found)}"
    yield Finding.equal(computed, worst, 0, tolerance=ROUNDING)
    yield Finding.reported("mean of ‖vᵀ ∂H/∂x‖ / ‖v‖, with the shortcut", sum(kept) / len(kept))
    yield Finding.reported("mean of ‖vᵀ ∂F/∂x‖ / ‖v‖, of the branch alone", sum(alone) / len(alone))


class Sums(TorchFunctionMode):
    """Records the additions of two tensors of one shape; of those in `without` only the branch is returned."""

    def __init__(self, running: list[tuple[str, Tensor | None]], without: dict[int, bool] | None = None) -> None:
        super().__init__()
        self.running, self.without = running, without or {}
        self.found: list[Sum] = []
        self.count = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = getattr(func, "__name__", "") in ADDITIONS and len(args) == 2 and not kwargs
        if not known or not all(isinstance(t, Tensor) and t.requires_grad for t in args):
            return func(*args, **(kwargs or {}))
        if args[0].shape != args[1].shape:
            return func(*args)
        number, (a, b) = self.count, args
        self.count += 1
        if number in self.without:
            out = (b if self.without[number] else a).clone()
        else:
            out = torch.add(a, b)  # never in place, which would leave a without its own gradient
        block, x = self.running[-1] if self.running else ("", None)
        self.found.append(Sum(number, block, x, a, b, out))
        return out.clone()  # an activation in place would change the sum


def counted(found: list[Shortcut]) -> str:
    """The number of shortcuts in words."""
    return f"{len(found)} shortcut{'s' * (len(found) > 1)}"


def shortcuts_of(subject: Subject) -> tuple[Tensor, list[Shortcut]]:
    """Compute the loss in evaluation mode; return it and the shortcuts on the way, in the order in which they run."""
    loss, sums = sums_of(subject)
    return loss, [found for found in map(_shortcut, sums) if found is not None]


def sums_of(subject: Subject, without: dict[int, bool] | None = None) -> tuple[Tensor, list[Sum]]:
    """Compute the loss in evaluation mode; return it and the sums of two tensors on the way.

    `without` maps the numbers of sums to whether their second operand is the branch: of these the branch alone is left.
    """
    running: list[tuple[str, Tensor | None]] = []

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        running.append((name, first_tensor(inputs)))

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    density, sums = subject.density, Sums(running, without)
    with torch.enable_grad(), evaluating(density, subject.seed), hooked(density, before=before, after=after), sums:
        loss = loss_of(subject)()
    return loss, sums.found


def _shortcut(s: Sum) -> Shortcut | None:
    if not s.block or s.out.dim() < 2:
        return None  # terms of a log-probability are summed too, outside of any module
    for base, branch, second in ((s.a, s.b, True), (s.b, s.a, False)):
        if _path(branch, base) == "weights":
            return Shortcut(s.number, s.block, base, branch, s.out, second)
    in_a_list = s.block.split("#")[0].rpartition(".")[2].isdigit()
    if in_a_list and s.x is not None and s.x.shape == s.out.shape and s.x.requires_grad:
        for base, branch, second in ((s.a, s.b, True), (s.b, s.a, False)):
            if _path(base, s.x) == "no weights" and _path(branch, s.x) == "weights":
                return Shortcut(s.number, s.block, s.x, branch, s.out, second)
    return None


def _path(y: Tensor, x: Tensor) -> str:
    """How y is computed from x: with `weights`, with `no weights`, or `not` at all."""
    if x.grad_fn is None or y.grad_fn is None or x is y:
        return "not"
    start, weights, reached = (x.grad_fn, x.output_nr), False, False
    done: set[Any] = set()
    stack = [(y.grad_fn, y.output_nr)]
    while stack:
        node, number = stack.pop()
        if (node, number) == start:
            reached = True
        elif node not in done:
            done.add(node)
            weights |= type(node).__name__ == "AccumulateGrad"
            stack.extend((child, nr) for child, nr in node.next_functions if child is not None)
    return "not" if not reached else "weights" if weights else "no weights"
