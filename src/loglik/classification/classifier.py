"""Classifier: p(y | x) from features and a head (the notes, part B1 of spring 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loglik.checks import check_codes, check_levels
from loglik.classification.inputs import Columns
from loglik.density import Density, evaluation_mode, output_layer, sample_categories

__all__ = ["Classifier"]

PRIOR_STRENGTH = 4.0  # a: the prior of the inverse temperature has mode 1 and standard deviation about 1/2


class Classifier(Density):
    r"""The distribution $p(y \mid x) = \text{softmax}(g_{\theta_2}(f_{\theta_1}(x)))_y$: features f, head g, C classes.

    The label is the event and the data are the context. `-log_prob` is the cross-entropy
    $-\sum_c 1[y = c] \log \hat y_c$, and `loss` its mean. With label smoothing ε, only `loss` mixes the target with the
    uniform distribution, $(1 - ε)\,1[y = c] + ε / C$ (Szegedy et al. 2016). After training, `calibrate` divides the
    logits by the temperature T that maximises the posterior on validation labels (Guo et al. 2017, section 4.2).

    Args:
        features: from inputs of order one to (B, h).
        head: from (B, h) to (B, C) logits.
        classes: C.
        prepare: from data to inputs of the features (a scaling, a one-hot code), fitted by `initialise`; None if they
            are the same.
        augment: random changes of the inputs, in `loss` in training only.
        smoothing: ε.
        mirror: whether logits in evaluation are the mean of those of an image and its mirror image (Krizhevsky et al.
            2012, section 4.1), so that p(y | x) is the same for both.

    Raises:
        ValueError: fewer than 2 classes; smoothing outside [0, 1).
    """

    temperature: Tensor

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        classes: int,
        *,
        prepare: nn.Module | None = None,
        augment: nn.Module | None = None,
        smoothing: float = 0.0,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.features, self.head, self.prepare, self.augment = features, head, prepare, augment
        self.register_buffer("temperature", torch.ones(()))
        self.classes = classes
        self.smoothing, self.mirror = smoothing, mirror
        self.event_shape = ()
        self.discrete = True
        self.conditional = True
        self.event = "y"

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the head's last layer, whose rows are the classes."""
        return output_layer(self.head)

    def logits(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Return the head's output for data x, divided by the temperature."""
        if self.prepare is not None:
            x = self.prepare(x)
        logits = self.head(self.features(x))
        if self.mirror and not self.training:
            logits = (logits + self.head(self.features(x.flip(-1)))) / 2
        return logits / self.temperature

    def probabilities(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Return p(y | x) for each class."""
        return self.logits(x).softmax(-1)

    def log_prob(
        self, x: Int64[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        return -F.cross_entropy(self.logits(_require(context)), x, reduction="none")

    def loss(self, x: Int64[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        self.check(x, context)
        inputs = _require(context)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        if self.augment is not None and self.training:
            inputs = self.augment(inputs)
        return F.cross_entropy(self.head(self.features(inputs)), x, label_smoothing=self.smoothing)

    def check(self, x: Int64[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_levels(x, self.classes, "labels")
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        if isinstance(self.prepare, Columns) and context is not None:
            check_codes(context.flatten(1), self.prepare.categories, missing=True)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Int64[Tensor, " n"]:
        return sample_categories(self.probabilities(_require(context)))

    def initialise(self, x: Int64[Tensor, " N"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        if self.prepare is not None and hasattr(self.prepare, "initialise"):
            self.prepare.initialise(context)  # type: ignore[operator]

    @torch.no_grad()
    def calibrate(self, x: Int64[Tensor, " N"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        r"""Set the temperature by maximum a posteriori on validation labels x and their data.

        The objective $\sum_i \log p(y_i \mid x_i) + a (\log \beta - \beta)$ with β = 1/T has a Gamma prior of mode 1
        and is concave in β. Without the prior, a small validation set without errors would make every prediction
        certain.
        """
        self.temperature.fill_(1)
        with evaluation_mode(self):
            logits = torch.cat([self.logits(rows) for rows in _require(context).split(256)]).double()
        inverse = torch.ones((), dtype=torch.float64, device=logits.device)
        for _ in range(50):  # Newton's method; a step at most doubles or halves β
            p = (inverse * logits).softmax(1)
            mean = (p * logits).sum(1)
            slope = (mean - logits.gather(1, x[:, None]).squeeze(1)).mean()
            curvature = ((p * logits.square()).sum(1) - mean.square()).mean()
            slope = slope + PRIOR_STRENGTH / len(x) * (1 - 1 / inverse)
            curvature = curvature + PRIOR_STRENGTH / len(x) / inverse.square()
            inverse = (inverse - slope / curvature).clamp(inverse / 2, inverse * 2).clamp(0.01, 100)
        self.temperature.copy_(1 / inverse)


def _require(context: Tensor | None) -> Tensor:
    if context is None:
        raise ValueError("a classifier is p(y | x), got no context: pass the data x as the context")
    return context
