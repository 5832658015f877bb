"""What checks are run on: a density, the data it is for, and the parts that statements are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from loglik.data.dataset import Data, Split
from loglik.density import Density
from loglik.evaluation.scores import arguments, evaluating
from loglik.flows import Flow

__all__ = ["DoesNotApply", "Part", "Subject"]

EXAMPLES = 256
D = TypeVar("D", bound=Density)
M = TypeVar("M", bound=nn.Module)


class DoesNotApply(Exception):
    """A statement is about something that this model or these data do not have; the message says what."""


@dataclass(frozen=True)
class Part(Generic[D]):
    """A density within the subject, with the event and context that reach it."""

    density: D
    event: Tensor
    context: Tensor | None


@dataclass(frozen=True)
class Subject:
    """A density with data that it is evaluated on.

    Attributes:
        density: in evaluation mode.
        data: what it was trained on, or is for.
        model: the name of its recipe, or its class for a density built by hand.
        options: the recipe's options.
        split: the name of the split whose first examples are used.
        seed: of everything that is drawn.
    """

    density: Density
    data: Data
    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    seed: int = 0

    @cached_property
    def examples(self) -> Split:
        """The first examples of the split, at most 256."""
        split = self.data.split(self.split)
        return Split(split.x[:EXAMPLES], None if split.y is None else split.y[:EXAMPLES])

    @cached_property
    def arguments(self) -> tuple[Tensor, Tensor | None]:
        """The event and the context of these examples, on the density's device."""
        return arguments(self.density, self.examples.x[:], self.examples.labels())

    @property
    def event(self) -> Tensor:
        return self.arguments[0]

    @property
    def context(self) -> Tensor | None:
        return self.arguments[1]

    @contextmanager
    def drawing(self, salt: int = 0) -> Iterator[None]:
        """Evaluate the density without gradients and with noise of the subject's seed."""
        with evaluating(self.density, self.seed + salt):
            yield

    def part(self, kind: type[D]) -> Part[D]:
        """Return the outermost density of a kind, itself or behind a flow's transforms.

        Raises DoesNotApply where there is none.
        """
        density, (event, context) = self.density, self.arguments
        while not isinstance(density, kind):
            if not isinstance(density, Flow):
                raise DoesNotApply(f"this model is no {kind.__name__} and has none behind its transforms")
            with self.drawing():
                event, density = density.encode(event, context)[0], density.base
        return Part(density, event, context)

    def modules(self, kind: type[M] | tuple[type[M], ...]) -> dict[str, M]:
        """Return the density's modules of a kind by their names. Raises DoesNotApply where there is none."""
        found = {name: module for name, module in self.density.named_modules() if isinstance(module, kind)}
        if not found:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise DoesNotApply(f"this model has no {' or '.join(k.__name__ for k in kinds)}")
        return found  # type: ignore[return-value]

    def needs_layers(self) -> None:
        """Raise DoesNotApply where the density has no layer with a matrix of weights."""
        if not any(parameter.dim() >= 2 for parameter in self.density.parameters()):
            raise DoesNotApply("this model has no layers with weights")

    def contexts(self, n: int) -> Tensor | None:
        """Return the contexts of the data in turn, n of them; None where the density has none."""
        if self.context is None:
            return None
        return self.context[torch.arange(n, device=self.context.device) % len(self.context)]

    def drawn(self, n: int) -> Tensor:
        """Draw n examples from the density, with the contexts of the data in turn where it is conditional."""
        return self.density.sample(n, self.contexts(n))
