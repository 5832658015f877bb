"""What the transforms of a density are called with: recorded on a copy in float64, for the checks of flows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loglik.devices import fork_generators
from loglik.flows import Flow
from loglik.transforms import Transform
from loglik.verification.subject import Subject

__all__ = ["TransformCall", "TransformCalls", "record_calls"]


@dataclass(frozen=True)
class TransformCall:
    """One call of `encode` or `decode` of a transform, or of a flow: (x, context) to `output`.

    Attributes:
        name: of the transform within the density.
        module: the transform or flow.
        x, context: what it was called with.
        output: what it returned first: z of `encode`, x of `decode`.
        log_det: of `encode`.
        encode, decode: its methods, which are not recorded.
    """

    name: str
    module: Transform | Flow
    x: Tensor
    context: Tensor | None
    output: Tensor
    log_det: Tensor | None
    encode: Callable[..., tuple[Tensor, Tensor]]
    decode: Callable[..., Tensor]

    @property
    def label(self) -> str:
        """Its name and kind in words."""
        return f"{self.name or 'the whole flow'} ({type(self.module).__name__})"


@dataclass
class TransformCalls:
    """The first call of each transform and flow by its name, in the order in which they ended."""

    encoded: dict[str, TransformCall] = field(default_factory=dict)
    decoded: dict[str, TransformCall] = field(default_factory=dict)


def record_calls(subject: Subject, rows: int) -> TransformCalls:
    """Evaluate `rows` examples and draw as many on a copy in float64, and return the calls of its transforms.

    Raises DoesNotApply where the density has no transforms.
    """
    subject.modules(Transform)
    calls = TransformCalls()
    density = copy.deepcopy(subject.density).double().eval()
    for name, module in density.named_modules():
        if isinstance(module, (Transform, Flow)):
            _record(name, module, calls)
    event, context = subject.arguments
    given = None if context is None else context[:rows]
    with double(), torch.no_grad(), fork_generators(density.device):
        torch.manual_seed(subject.seed)
        density.log_prob(event[:rows], given)
        density.sample(rows, given)
    return calls


@contextmanager
def double() -> Iterator[None]:
    """Make float64 the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _record(name: str, module: Transform | Flow, calls: TransformCalls) -> None:
    encode, decode = module.encode, module.decode

    def recorded_encode(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = encode(x, context)
        calls.encoded.setdefault(name, TransformCall(name, module, x, context, z, log_det, encode, decode))
        return z, log_det

    def recorded_decode(z: Tensor, context: Tensor | None = None) -> Tensor:
        x = decode(z, context)
        calls.decoded.setdefault(name, TransformCall(name, module, z, context, x, None, encode, decode))
        return x

    methods: dict[str, Any] = {"encode": recorded_encode, "decode": recorded_decode}
    for key, method in methods.items():
        object.__setattr__(module, key, method)
