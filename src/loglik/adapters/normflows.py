"""normflows' models as densities: plain, conditional, class-conditional and multiscale."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.distributions import Context
from loglik.adapters.foreign import Foreign, preprocessed, refused, tried
from loglik.checks import check_levels
from loglik.density import Bound, Density

__all__ = ["FromNormflows", "from_normflows"]


class FromNormflows(Foreign):
    """log p(x | context) of a model of normflows; residual flows estimate their log-determinant.

    Args:
        model: of normflows.
        event_shape: of one example.
        keyword: the argument of the model that is the context: `context`, `y`, or empty for p(x).
        classes: the number of labels that y may have; None if unknown.
        context: a function from loglik's context to the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        *,
        keyword: str = "",
        classes: int | None = None,
        context: Context = None,
    ) -> None:
        tensors = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        super().__init__(
            "normflows", event_shape, conditional=bool(keyword), dtype=next(tensors, torch.zeros(())).dtype
        )
        self.module, self.keyword, self.classes, self.context = model, keyword, classes, context

    @property
    def bound(self) -> Bound:
        from normflows.flows.residual import iResBlock

        estimated = any(isinstance(module, iResBlock) for module in self.module.modules())
        return Bound.ESTIMATE if estimated else Bound.EXACT

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        super().check_context(context)
        if context is not None and self.keyword == "y" and self.context is None:
            check_levels(context, self.classes, "labels")

    def _given(self, context: Tensor | None) -> dict[str, Tensor]:
        if not self.keyword or context is None:
            return {}
        given = context if self.context is None else self.context(context)
        return {self.keyword: given.to(self.anchor.dtype) if given.is_floating_point() else given}

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        model: Any = self.module
        given: dict[str, Any] = self._given(context)
        if not given and hasattr(model, "class_cond"):
            given = {"y": None}
        try:
            log_p: Tensor = model.log_prob(x.to(self.anchor.dtype), **given)
        except (RuntimeError, IndexError, ValueError, AssertionError) as error:
            raise refused(self.library, error) from error
        return log_p

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        self.check_context(context)
        model: Any = self.module
        x: Tensor = model.sample(n, **self._given(context))[0]
        return x.reshape(n, *self.event_shape)


def from_normflows(
    model: nn.Module,
    *,
    event_shape: tuple[int, ...] | None = None,
    context: Context = None,
    **preprocessing: Any,
) -> Density:
    """Return a model of normflows as a density.

    Args:
        model: a `NormalizingFlow`, `ConditionalNormalizingFlow`, `ClassCondFlow` or `MultiscaleFlow`; its weights are
            used as they are, not copied. Of a class-conditional base the context is the label.
        event_shape: of one example; that of a sample or of the base distribution if None.
        context: a function from loglik's context, labels or inputs, to that of the model.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for anything else, and for stochastic layers, whose flow has no density in closed form.
    """
    import normflows as nf

    kinds = (nf.NormalizingFlow, nf.ClassCondFlow, nf.MultiscaleFlow)
    if not isinstance(model, kinds):
        raise ValueError(
            f"expected {', '.join(kind.__name__ for kind in kinds)} or ConditionalNormalizingFlow of normflows, got "
            f"{type(model).__name__}"
        )
    for module in model.modules():
        if type(module).__module__ == "normflows.flows.stochastic":
            raise ValueError(
                f"the model has the stochastic layer {type(module).__name__}: such a flow has no density in closed form"
            )
    keyword, bases = "", [model.q0] if not isinstance(model, nf.MultiscaleFlow) else list(model.q0)
    if isinstance(model, nf.ConditionalNormalizingFlow):
        keyword = "context"
    elif isinstance(model, nf.ClassCondFlow) or getattr(model, "class_cond", False):
        keyword = "y"
    classes = getattr(bases[0], "num_classes", None) if keyword == "y" else None
    if event_shape is None:
        given = {"y": torch.zeros(1, dtype=torch.long)} if keyword == "y" else {}
        drawn = None if keyword == "context" else tried(model, lambda own: own.sample(1, **given)[0])
        event_shape = getattr(bases[0], "shape", None) if drawn is None else tuple(drawn.shape[1:])
        if event_shape is None:
            drawn = tried(bases[0], lambda base: base.sample(1))
            if drawn is None:
                raise ValueError("the shape of the event is unknown: pass event_shape=")
            event_shape = tuple(drawn.shape[1:])
    density = FromNormflows(model, tuple(event_shape), keyword=keyword, classes=classes, context=context)
    return preprocessed(density, **preprocessing)
