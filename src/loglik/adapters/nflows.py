"""nflows' flows and distributions as densities."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.distributions import Context
from loglik.adapters.foreign import Foreign, preprocessed, refused, tried
from loglik.density import Density

__all__ = ["FromNflows", "from_nflows"]


class FromNflows(Foreign):
    """log p(x | context) of an nflows `Distribution`; its flows are distributions."""

    def __init__(
        self, flow: nn.Module, event_shape: tuple[int, ...], *, conditional: bool, context: Context = None
    ) -> None:
        parameter = next(flow.parameters(), torch.zeros(()))
        super().__init__("nflows", event_shape, conditional=conditional, dtype=parameter.dtype)
        self.module, self.context = flow, context

    def _given(self, context: Tensor | None) -> Tensor | None:
        if context is None or not self.conditional:
            return None
        given = context if self.context is None else self.context(context)
        return given.to(self.anchor.dtype) if given.is_floating_point() else given

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        model: Any = self.module
        try:
            log_p: Tensor = model.log_prob(x.to(self.anchor.dtype), context=self._given(context))
        except Exception as error:  # a domain, a width, an embedding: nflows has errors of its own
            raise refused(self.library, error) from error
        return log_p

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        self.check_context(context)
        model: Any = self.module
        given = self._given(context)
        x: Tensor = model.sample(n) if given is None else model.sample(1, context=given)
        return x.reshape(n, *self.event_shape)


def from_nflows(
    flow: nn.Module,
    *,
    event_shape: tuple[int, ...] | None = None,
    context: Context = None,
    **preprocessing: Any,
) -> Density:
    """Return a flow or distribution of nflows as a density.

    A flow is conditional if it has an embedding of a context or layers that read one.

    Args:
        flow: its weights are used as they are, not copied.
        event_shape: of one example; that of a sample or of the base distribution if None.
        context: a function from loglik's context, labels or inputs, to that of the flow.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for anything else.
    """
    from nflows.distributions.base import Distribution

    if not isinstance(flow, Distribution):
        raise ValueError(f"expected an nflows Flow or Distribution, got {type(flow).__name__}")
    embedding = getattr(flow, "_embedding_net", None)
    conditional = not isinstance(embedding, (nn.Identity, type(None))) or any(
        "context" in name and module is not None for name, module in flow.named_modules()
    )
    if event_shape is None:
        drawn = None if conditional else tried(flow, lambda model: model.sample(1))
        base: Any = getattr(flow, "_distribution", flow)
        event_shape = getattr(base, "_shape", None) if drawn is None else tuple(drawn.shape[1:])
        if event_shape is None:
            raise ValueError("the shape of the event is unknown: pass event_shape=")
    density = FromNflows(flow, tuple(event_shape), conditional=conditional, context=context)
    return preprocessed(density, **preprocessing)
