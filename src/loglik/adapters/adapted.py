"""Adapted: a diffusion whose denoiser is a network of another library."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.adapters.conventions import SEED, check_convention
from loglik.adapters.wrapped import Wrapped, needed
from loglik.checks import check_levels
from loglik.diffusion import Diffusion
from loglik.diffusion.likelihood import Likelihood, Model
from loglik.graphs import graphed

__all__ = ["Adapted"]

MIN_ROWS, MIN_VALUES = 8, 64  # of the data that a convention is checked with
LEARNED_ROWS, LEARNED_BATCHES = 128, 4  # from which the control variate learns, at most


class Adapted(Diffusion):
    """A diffusion whose denoiser is a network of another library.

    Before the first scores the convention is checked on the data, since a wrong one gives a valid bound of nothing (see
    `conventions.check_convention`), and the control variate is fitted, which changes the noise of the bound and not its
    expectation. A batch of fewer than 8 rows or 64 values is too small for both, and a later one serves.

    Args:
        checked: False where the convention is not to be checked.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        event_shape: tuple[int, ...],
        *,
        levels: int | None = None,
        likelihood: Likelihood | None = None,
        checked: bool = True,
    ) -> None:
        schedule = wrapped.path.schedule(wrapped.scale)
        super().__init__(wrapped, event_shape, levels=levels, schedule=schedule, likelihood=likelihood)
        self.checked, self.prepared = checked, False

    @property
    def wrapped(self) -> Wrapped:
        """The denoiser."""
        assert isinstance(self.denoiser, Wrapped)
        return self.denoiser

    def _model(self, context: Tensor | None) -> Model:
        residual = graphed(self.denoiser, "residual", self.wrapped.residual)
        return replace(super()._model(context), residual=residual)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        if self.wrapped.classes is not None:
            check_levels(needed(context), self.wrapped.classes, "labels")

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        x = self._in_own_dtype(x)
        if not self.prepared and len(x) >= MIN_ROWS and x.numel() >= MIN_VALUES and not x.is_meta:
            self.initialise(x, context)
        return super().terms(x, context, samples=samples)

    def _in_own_dtype(self, x: Tensor) -> Tensor:
        """Return real data in the density's dtype: a data set's float32 would round a float64 network's noise."""
        return x.to(self.wrapped.anchor.dtype) if x.is_floating_point() else x

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Check the convention on data, and learn from them where the bound's noise levels are best drawn."""
        x = self._in_own_dtype(x)
        if self.checked:
            v = self.reconstruction.embed(x)
            check_convention(self.wrapped, v, context, spans=self.levels is not None)
        super().initialise(x, context)
        before, self.training = self.training, True  # the control variate learns in training, the network does not
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(SEED)
            count = min(LEARNED_ROWS, len(x))
            for number in range(LEARNED_BATCHES):
                rows = (torch.arange(count, device=x.device) + number * count) % len(x)
                self.loss(x[rows], None if context is None else context[rows])
        self.training, self.prepared = before, True
