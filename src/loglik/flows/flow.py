"""Flow: a base density pushed through invertible maps (the notes, part B2 of autumn 2025, question b)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.checks import check_complete, check_labels, check_levels, data_checked
from loglik.density import Bound, Density, StandardNormal, embed, initialise_context, output_layer
from loglik.draws import draw_terms, draw_weights
from loglik.flows.by_dimension import flow_terms, has_terms
from loglik.graphs import graphed
from loglik.missing import Imputer, hot_deck
from loglik.transforms import Dequantize, Standardise, Transform

__all__ = ["Flow"]


class Flow(Density):
    r"""Change of variables by transforms $T_1, \dots, T_n$ over a base density:

    $\log p(x) = \log p_0(z) + \sum_i \log \lvert \det J_{T_i} \rvert,\quad z = T_n \circ \dots \circ T_1(x)$.

    Log-probabilities are exact, or a lower bound if a transform dequantizes or the base is a lower bound. With
    `samples=K`, a dequantized flow averages K importance weights. Of rows with missing values, NaN, it returns log p of
    the observed ones if the base marginalises and every transform changes each column by itself.

    Args:
        transforms: applied in order, from data to noise.
        base: any density over events of the last transform's output shape.
        context: a network from a context (a label, a vector) to the transforms' context vector, such as
            `nn.Embedding`; None for transforms without context. The base receives the context unchanged.
    """

    def __init__(self, transforms: Sequence[Transform], base: Density, *, context: nn.Module | None = None) -> None:
        super().__init__()
        self.transforms: Sequence[Transform] = nn.ModuleList(transforms)  # type: ignore[assignment]
        self.base = base
        self.context = context
        shape, discrete = tuple(base.event_shape), base.discrete
        for transform in reversed(transforms):
            shape, discrete = transform.decoded_shape(shape), transform.decoded_discrete(discrete)
        self.event_shape, self.discrete = shape, discrete
        self.conditional = context is not None or base.conditional
        self.marginalises = base.marginalises and all(transform.columnwise for transform in transforms)
        rounds = any(isinstance(transform, Dequantize) for transform in transforms)
        self.has_rsample = base.has_rsample and not rounds
        first = transforms[0] if transforms else None
        self.levels = first.levels if isinstance(first, Dequantize) and first.all_integers else None

    @property
    def bound(self) -> Bound:
        return Bound.weakest(self.base.bound, *(transform.bound for transform in self.transforms))

    @property
    def warming_up(self) -> bool:
        return self.base.warming_up

    def progress(self, fraction_done: float) -> None:
        self.base.progress(fraction_done)

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the base's output layers; if it has none, that of the last transform whose network declares one."""
        last_first = (output_layer(getattr(transform, "network", None)) for transform in reversed(self.transforms))
        return self.base.output_layers() or next(filter(None, last_first), ())

    @property
    def importance_weighted(self) -> bool:
        estimated = any(transform.bound is Bound.ESTIMATE for transform in self.transforms)
        return self.base.importance_weighted and not estimated

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Map data to the base's variable: (z, the sum of the log-determinants)."""
        run = graphed(self, "encode", self._encode_checked)
        if run == self._encode_checked:
            return self._encode(x, context)
        for transform in self.transforms[:1]:
            transform.check(x)
        return run(x, context)

    def _encode_checked(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with data_checked():
            return self._encode(x, context)

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        vector = embed(self.context, context)
        z, total = x, torch.zeros(len(x), device=x.device)
        for transform in self.transforms:
            z, log_det = transform.encode(z, vector)
            total = total + log_det
        return z, total

    def decode(
        self, z: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """Map the base's variable to data."""
        return graphed(self, "decode", self._decode)(z, context)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        vector = embed(self.context, context)
        for transform in reversed(self.transforms):
            z = transform.decode(z, vector)
        return z

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)

        def log_weight(rows: Tensor, row_context: Tensor | None) -> Tensor:
            z, log_det = self.encode(rows, row_context)
            return self.base.log_prob(z, row_context) + log_det

        if self._draws_only_in_base:  # the base combines its own samples
            z, log_det = self.encode(x, context)
            return self.base.log_prob(z, context, samples=samples) + log_det
        return draw_weights(
            log_weight,
            x,
            context,
            samples,
            importance_weighted=self.importance_weighted,
            at_once=self._max_events,
        )

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_levels(x, self.levels)
        self.check_context(context)
        if not self.marginalises:
            check_complete(x)
        for transform in self.transforms[:1]:
            transform.check(x)
        if all(isinstance(transform, (Dequantize, Standardise)) for transform in self.transforms):
            self.base.check(x)  # these leave the columns of codes as they are

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        check_labels(self.context, context)
        self.base.check_context(context)

    @property
    def has_jacobian(self) -> bool:
        """Whether `terms_by_dimension` computes the Jacobian, with a backward pass for each dimension."""
        return isinstance(self.base, StandardNormal) and has_terms(list(self.transforms), self.base)

    @property
    def _draws_only_in_base(self) -> bool:
        return Bound.weakest(*(transform.bound for transform in self.transforms)) is Bound.EXACT

    @property
    def _max_events(self) -> int:
        return max(1, 2**16 // math.prod(self.event_shape))

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        self.check(x, context)
        z, log_det = self.encode(x, context)
        return self.base.loss(z, context) - log_det.mean()

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        return self.decode(self.base.sample(n, context), context)

    def rsample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        if not self.has_rsample:
            return super().rsample(n, context)
        return self.decode(self.base.rsample(n, context), context)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Initialise the transforms in order, then the base, from up to two million numbers of the training data."""
        max_events = max(1024, 2**21 // max(1, math.prod(self.event_shape)))
        every = slice(None, None, math.ceil(len(x) / max_events))
        x, context = x[every], None if context is None else context[every]
        initialise_context(self.context, context)
        vector, z = embed(self.context, context), hot_deck(x)
        gaps = None if z is x else x.isnan().flatten(1)
        for transform in self.transforms:
            transform.initialise(z)
            z, _ = transform.encode(z, vector)
        if gaps is not None:
            z = z.masked_fill(gaps.view(z.shape), torch.nan)
        self.base.initialise(z, context)

    def fill_with_log_prob(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Fill missing values by the base, an `Imputer`, behind transforms of each column by itself: (rows, log q).

        Raises ValueError for other bases and transforms.
        """
        if not (self.marginalises and self._draws_only_in_base and isinstance(self.base, Imputer)):
            raise ValueError("this flow cannot fill missing values: its transforms or its base need complete rows")
        z, log_det = self.encode(x, context)
        z, log_q = self.base.fill_with_log_prob(z, context)
        filled = torch.where(x.isnan(), self.decode(z, context).to(x.dtype), x)
        return filled, log_q + self.encode(filled, context)[1] - log_det

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        return self.base.numerical_error(self.encode(x, context)[0], context)

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the base's terms, the log-determinant and the gain from K importance weights.

        Empty for an exact flow. `base` is the only term of a base without terms.
        """
        if self.bound is Bound.EXACT:
            return {}
        if self._draws_only_in_base:
            z, log_det = self.encode(x, context)
            return _with_log_det(self.base.terms(z, context, samples=samples), log_det)

        def terms(rows: Tensor, row_context: Tensor | None) -> dict[str, Tensor]:
            z, log_det = self.encode(rows, row_context)
            base_terms = self.base.terms(z, row_context) or {"base": self.base.log_prob(z, row_context)}
            return _with_log_det(base_terms, log_det)

        return draw_terms(
            terms, x, context, samples, importance_weighted=self.importance_weighted, at_once=self._max_events
        )

    def terms_by_dimension(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, "B ..."]]:
        """Return the base's terms and the log-determinant by dimension, (B, D); see `flow_terms`.

        Empty for a flow that has none: with a base that is neither N(0, I) nor has such terms behind columnwise
        transforms, and with transforms whose log-determinant is an estimate.
        """
        if not has_terms(list(self.transforms), self.base):
            return {}

        def terms(rows: Tensor, row_context: Tensor | None, samples: int = 1) -> dict[str, Tensor]:
            vector = embed(self.context, row_context)
            return flow_terms(list(self.transforms), self.base, vector, rows, row_context, samples=samples)

        if self._draws_only_in_base:
            return terms(x, context, samples)
        weighted, at_once = self.importance_weighted, self._max_events
        return draw_terms(terms, x, context, samples, importance_weighted=weighted, at_once=at_once)


def _with_log_det(terms: dict[str, Tensor], log_det: Tensor) -> dict[str, Tensor]:
    """Add the log-determinant to the terms, which may contain that of an ODE or of an inner flow."""
    if not terms:
        return {}
    return {**terms, "log-determinant": terms.get("log-determinant", torch.zeros_like(log_det)) + log_det}
