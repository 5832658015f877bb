"""Classifier: p(y | x) from features and a head (the notes, part B1 of spring 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loglik.density import Density, check_levels

__all__ = ["Classifier"]


class Classifier(Density):
    r"""$p(y \mid x) = \text{softmax}(g_{\theta_2}(f_{\theta_1}(x)))_y$: features f, then a head g to C classes.

    The label is the event and the data are the context. `-log_prob` is the cross-entropy,
    $-\sum_c 1[y = c] \log \hat y_c$, and `loss` its mean; with `smoothing` ε, `loss` alone mixes the target with the
    uniform distribution, $(1 - ε)\,1[y = c] + ε / C$ (Szegedy et al. 2016).

    Args:
        features: from data of order one to (B, h).
        head: from (B, h) to (B, C) logits.
        classes: C.
        prepare: from data as the user holds them to what the features take (a scaling, a one-hot code), fitted
            by `initialise`; None where they are the same.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        classes: int,
        *,
        prepare: nn.Module | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
        self.features, self.head, self.prepare = features, head, prepare
        self.classes = classes
        self.smoothing = smoothing
        self.event_shape = ()
        self.discrete = True
        self.conditional = True
        self.event = "y"

    def logits(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """The head's output for data x."""
        if self.prepare is not None:
            x = self.prepare(x)
        return self.head(self.features(x))

    def probabilities(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """p(y | x) for every class."""
        return self.logits(x).softmax(-1)

    def log_prob(
        self, x: Int64[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        check_levels(x, self.classes, "labels")
        return -F.cross_entropy(self.logits(_needed(context)), x, reduction="none")

    def loss(self, x: Int64[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        check_levels(x, self.classes, "labels")
        return F.cross_entropy(self.logits(_needed(context)), x, label_smoothing=self.smoothing)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Int64[Tensor, " n"]:
        return torch.multinomial(self.probabilities(_needed(context)), 1).squeeze(1)

    def initialise(self, x: Int64[Tensor, " N"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        if self.prepare is not None and hasattr(self.prepare, "initialise"):
            self.prepare.initialise(context)  # type: ignore[operator]


def _needed(context: Tensor | None) -> Tensor:
    if context is None:
        raise ValueError("a classifier is p(y | x): pass the data x as the context")
    return context
