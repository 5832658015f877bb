"""Attention weights as a model computes them: what each softmax inside its attention layers returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.cpu.private import TorchDispatchMode
from loglik.inspection.layers import evaluating, hooked
from loglik.verification.calls import loss_of
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["SOFTMAX", "Weights", "weights_of"]

SOFTMAX = (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)


@dataclass(frozen=True)
class Weights:
    """What one softmax inside an attention layer returned."""

    layer: str
    module: nn.Module
    values: Float[Tensor, "... T S"]

    @property
    def heads(self) -> Float[Tensor, "B H T S"] | None:
        """The weights by head; None where the layer does not say how many heads it has."""
        number = getattr(self.module, "num_heads", getattr(self.module, "heads", None))
        if not isinstance(number, int) or self.values.dim() not in (3, 4):
            return None
        if self.values.dim() == 4:
            return self.values if self.values.shape[1] == number else None
        return self.values.unflatten(0, (-1, number)) if len(self.values) % number == 0 else None


def weights_of(subject: Subject) -> list[Weights]:
    """The attention weights of a forward pass. Raises DoesNotApply where no attention layer runs."""
    running: list[tuple[str, nn.Module]] = []
    found: list[Weights] = []

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        running.append((name, module))

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    def record(fused: bool, values: Tensor) -> None:
        inner = next(((n, m) for n, m in reversed(running) if _is_attention(m)), running[-1] if fused else None)
        if inner is not None and values.dim() >= 2:
            found.append(Weights(*inner, values.detach().clone()))

    density = subject.density
    with (
        torch.no_grad(),
        evaluating(density, subject.seed),
        hooked(density, before=before, after=after),
        sdpa_kernel(SDPBackend.MATH),  # which computes the softmax as an operation of its own
        _Softmaxes(record),
    ):
        loss_of(subject)()
    if not found:
        raise DoesNotApply("this model has no attention layer")
    return found


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


class _Softmaxes(TorchDispatchMode):
    """Calls `record` with what each softmax returns."""

    def __init__(self, record: Callable[[bool, Tensor], None]) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in SOFTMAX:
            self.record(func.overloadpacket is SOFTMAX[1], out)
        return out
