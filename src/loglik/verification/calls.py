"""The calls of a density's modules while its loss is computed: what each received and what it returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loglik.cpu.private import tree_leaves, tree_map
from loglik.inspection.layers import WHOLE, evaluating, first_tensor, hooked
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["Call", "calls", "loss_of", "recorded", "rerun"]

EXAMPLES = 16
Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


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


def calls(subject: Subject, kind: Kinds = nn.Module, *, what: str = "layer", examples: int = EXAMPLES) -> list[Call]:
    """Run the density in evaluation mode and return the calls of its modules of a kind, the first of each module.

    The tensors are copies without a graph. `what` is what an error calls such a module.

    Raises DoesNotApply where no module of the kind receives and returns floating-point numbers.
    """
    if not any(isinstance(module, kind) for module in subject.density.modules()):
        raise DoesNotApply(f"this model has no {what}")
    with torch.no_grad():
        found = [_copied(call) for call in recorded(subject, kind, examples)[1] if _is_of_floats(call)]
    if not found:
        raise DoesNotApply(f"no {what} of this model is a map of floating-point numbers that can be seen as it runs")
    return found


def recorded(subject: Subject, kind: Kinds = nn.Module, examples: int = EXAMPLES) -> tuple[Tensor, list[Call]]:
    """Compute the loss in evaluation mode; return it and the calls of modules of a kind, with the tensors themselves.

    Only the first call of each module is kept, and none whose tensors are inside `torch.func`.
    """
    found: list[Call] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if name == WHOLE or "#" in name or not isinstance(module, kind):
            return
        if first_tensor(inputs) is None or first_tensor(output) is None or not _all_stored((inputs, output)):
            return
        args, kwargs = inputs
        found.append(Call(name, module, args, kwargs, output))

    with evaluating(subject.density, subject.seed), hooked(subject.density, after=after):
        loss = loss_of(subject, examples)()
    return loss, found


def rerun(call: Call, x: Tensor, module: nn.Module | None = None) -> Tensor:
    """Run a call's module, or another in its place, on `x` in the place of what it received first."""
    own = call.x
    args, kwargs = tree_map(lambda value: x if value is own else value, (call.args, call.kwargs))
    y = first_tensor((module or call.module)(*args, **kwargs))
    assert y is not None
    return y


def _copied(call: Call) -> Call:
    """Copy every tensor once, so that what is one tensor in two places stays one."""
    copies: dict[int, Tensor] = {}

    def copy(leaf: Any) -> Any:
        return copies.setdefault(id(leaf), leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf

    args, kwargs, output = tree_map(copy, (call.args, call.kwargs, call.output))
    return Call(call.name, call.module, args, kwargs, output)


def _is_of_floats(call: Call) -> bool:
    return call.x.is_floating_point() and call.y.is_floating_point()


def _all_stored(value: Any) -> bool:
    """Whether all tensors are memory: those inside `torch.func` have none of their own."""
    try:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                leaf.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return False
    return True
