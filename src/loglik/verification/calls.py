"""The calls of a density's modules while its loss is computed: what each received and what it returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from loglik.inspection.layers import WHOLE, evaluating, first_tensor, hooked
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["Call", "calls", "floats", "loss_of", "rerun"]

EXAMPLES = 16


@dataclass(frozen=True)
class Call:
    """One run of a module.

    Attributes:
        name: of the module, with `#2` from its second run on.
        module: the module itself.
        args, kwargs: what it received.
        output: what it returned.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def x(self) -> Tensor:
        """The first tensor that the module received."""
        x = first_tensor((self.args, self.kwargs))
        assert x is not None
        return x

    @property
    def y(self) -> Tensor:
        """The first tensor that the module returned."""
        y = first_tensor(self.output)
        assert y is not None
        return y


def loss_of(subject: Subject, examples: int = EXAMPLES) -> Callable[[], Tensor]:
    """Return a function that computes the density's loss on the subject's first examples."""
    event, context = subject.arguments
    few = None if context is None else context[:examples]
    return lambda: subject.density.loss(event[:examples], few)


def calls(
    subject: Subject,
    kind: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module,
    *,
    examples: int = EXAMPLES,
    graph: bool = False,
) -> list[Call]:
    """Run the density in evaluation mode and return the calls of its modules of a kind, the first of each module.

    With `graph` the tensors are those of the loss's autograd graph; else they are copies without one.

    Raises DoesNotApply where no module of the kind receives and returns tensors.
    """
    found: list[Call] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if name == WHOLE or "#" in name or not isinstance(module, kind):
            return
        if first_tensor(inputs) is None or first_tensor(output) is None or not _all_stored((inputs, output)):
            return
        args, kwargs = inputs
        call = Call(name, module, args, kwargs, output)
        found.append(call if graph else Call(name, module, *_copied((args, kwargs, output))))

    subject.modules(kind)
    mode = torch.enable_grad() if graph else torch.no_grad()
    with mode, evaluating(subject.density, subject.seed), hooked(subject.density, after=after):
        loss_of(subject, examples)()
    if not found:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise DoesNotApply(f"no {' or '.join(k.__name__ for k in kinds)} runs as a layer of its own in this model")
    return found


def floats(found: Sequence[Call]) -> list[Call]:
    """Return the calls that map floating-point numbers to floating-point numbers."""
    return [call for call in found if call.x.is_floating_point() and call.y.is_floating_point()]


def rerun(call: Call, x: Tensor, module: nn.Module | None = None, *, graph: bool = False) -> Tensor:
    """Run a call's module, or another in its place, on `x` in the place of what it received first."""
    own = call.x
    args, kwargs = tree_map(lambda value: x if value is own else value, (call.args, call.kwargs))
    with nullcontext() if graph else torch.no_grad():
        y = first_tensor((module or call.module)(*args, **kwargs))
    assert y is not None
    return y


def _copied(value: Any) -> Any:
    """Copy every tensor once, so that what is one tensor in two places stays one."""
    copies: dict[int, Tensor] = {}

    def copy(leaf: Any) -> Any:
        return copies.setdefault(id(leaf), leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf

    return tree_map(copy, value)


def _all_stored(value: Any) -> bool:
    """Whether all tensors are memory: those inside `torch.func` have none of their own."""
    try:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                leaf.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return False
    return True
