"""Diffusion: the VP-SDE as a density (the notes, parts B2 of 2025)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from loglik.checks import check_complete, check_labels
from loglik.density import Bound, Density, initialise_context, output_layer
from loglik.diffusion.by_dimension import bound_by_dimension
from loglik.diffusion.chain import prior_term
from loglik.diffusion.control import Control, bins_of, split
from loglik.diffusion.denoiser import Denoise, Denoiser, LevelDenoiser, residual_of
from loglik.diffusion.guidance import by_classifier, classifier_free
from loglik.diffusion.inpaint import inpaint
from loglik.diffusion.learned import Learned
from loglik.diffusion.likelihood import (
    ODE,
    VLB,
    Likelihood,
    Model,
    draw_noise,
)
from loglik.diffusion.reconstruction import Codes, Levels, Reals, Reconstruction
from loglik.diffusion.sampler import Sampler, integrate
from loglik.diffusion.schedule import LinearBeta, NoiseSchedule, add_noise, check_falling
from loglik.diffusion.score_matching import ScoreMatching
from loglik.diffusion.steps import NOISE_ADDING
from loglik.draws import sum_terms
from loglik.explicit_noise import is_explicit
from loglik.graphs import graphed
from loglik.noise import draw_rows, whole_batch

__all__ = ["Diffusion", "with_likelihood", "with_sampler"]

TOGETHER = 4  # rows next to each other, whose times are stratified within the group


class Diffusion(Density):
    r"""A hierarchical VAE whose encoder adds noise and whose decoder is a network that removes it.

    Composed of a schedule (how much noise at what time), a denoiser (what the data were), an objective (what training
    minimises), a likelihood (how `log_prob` is computed) and a sampler. They do not depend on one another, and each can
    be replaced afterwards: `diffusion.likelihood = ODE()`, `diffusion.sampler = Sampler(method="unipc", steps=10)`.

    `log_prob` is a lower bound with `VLB` and an estimate with `ODE`, and `bound` says which. With the weighting
    `likelihood`, `loss` is minus the continuous bound, $-\log p(x) \le$ reconstruction + prior + diffusion; with others
    it is the weighted diffusion term alone.

    Args:
        denoiser: from (x_t, log-SNR, context) to the expected data: a `Denoiser`, a `LevelDenoiser` for data with
            few levels, or any module of that signature.
        event_shape: of the data.
        levels: K of integers 0 ... K-1, which are scaled to [-1, 1]; None for real data.
        categories: of rows, the number of codes 0, 1, ... of each dimension, 0 for a real number; the denoiser then
            receives rows in the layout of `reconstruction.Codes`. None where there are no codes.
        schedule: the noise; the VP-SDE with linear β(t) by default.
        objective: the likelihood's bound by default.
        likelihood: the continuous bound by default.
        sampler: the ancestral chain of 200 steps by default.

    Raises ValueError where the schedule's log-SNR does not fall.

    Attributes:
        gaussian: x_t is Gaussian given the data, as the bound and samplers that add noise need.

    Sources: Ho et al. 2020, "Denoising diffusion probabilistic models"; Song et al. 2021, "Score-based generative
    modeling through SDEs"; Kingma et al. 2021, "Variational diffusion models".
    """

    gaussian: bool = True

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        *,
        levels: int | None = None,
        categories: Sequence[int] | None = None,
        schedule: NoiseSchedule | None = None,
        objective: ScoreMatching | None = None,
        likelihood: Likelihood | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.event_shape = tuple(event_shape)
        self.dims = math.prod(event_shape)
        self.levels = levels
        self.schedule = schedule or LinearBeta()
        self.objective = objective or ScoreMatching()
        self.likelihood = likelihood or VLB()
        self.sampler = sampler or Sampler()
        self.conditional = getattr(denoiser, "context", None) is not None
        check_falling(self.schedule)
        self.reconstruction: Reconstruction = Reals(self.event_shape)
        if levels is not None:
            self.reconstruction = Levels(self.event_shape, levels, self._near(levels))
        elif categories is not None and any(categories):
            self.reconstruction = Codes(categories)
        self.discrete = self.reconstruction.discrete
        start = 1.0 if hasattr(denoiser, "mean") else 0.0
        self.control = Control(math.prod(self.reconstruction.shape), start)

    @property
    def bound(self) -> Bound:
        return self.likelihood.bound

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the output layer of the denoiser's network."""
        return output_layer(getattr(self.denoiser, "network", None))

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        """Log p(x | context) in nats by the likelihood; the mean over samples, whose times are stratified over all."""
        return sum_terms(self.terms(x, context, samples=samples))

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        v = self.reconstruction.embed(x)
        logsnr, factor, u = self.objective.draw(self.schedule, self._stratified(len(v), v))
        control, tables = self.control, self.objective.tables(self.control, self.schedule, v)
        draw, centred = draw_noise(self._model(context), v, logsnr), control.project(v, tables)
        squares = draw.residual.flatten(1).square()
        f, g = squares.sum(1), control.variates(centred, draw, tables)
        bins = bins_of(logsnr, tables.edges)
        rest = control.rest(f, g, bins)
        if self.objective.weighting == "likelihood":
            known = self.reconstruction.expected(x, v, tables.high) + prior_term(v, tables.low)
            loss = (0.5 * (factor * rest + control.expected(centred, tables)) - known).mean()
        else:
            loss = (0.5 * factor * f).mean()
        if self.training:
            own = () if self.objective.times != "importance" else (u, 0.5 * factor * f)
            if seen := whole_batch(control, split(squares.detach(), tables), g, bins, rest, *own):
                control.learn(*seen[:4])
                if own:
                    self.objective.learn(*seen[4:])
        if isinstance(self.schedule, Learned):
            variance = self.schedule.variance(logsnr, 0.5 * f)
            loss = loss + (variance - variance.detach())  # adds its gradient, and 0 to the value
        return loss

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_complete(x)
        self.reconstruction.check(x)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        labels = getattr(self.denoiser, "context", None)
        check_labels(labels if isinstance(labels, nn.Module) else None, context)

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the likelihood's terms: `reconstruction`, `prior` and `diffusion` for the bound."""
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        v = self.reconstruction.embed(x)
        model, u = self._model(context), self._stratified(len(x), v)
        draws = [self.likelihood.terms(model, x, v, (u + k) / samples) for k in range(samples)]
        return {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}

    def terms_by_dimension(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, "B D"]]:
        """Return `terms` by dimension of the data, of the bound in continuous time; empty for other likelihoods."""
        if not isinstance(self.likelihood, VLB) or self.likelihood.steps is not None:
            return {}
        v = self.reconstruction.embed(x)
        model, u = self._model(context), self._stratified(len(x), v)
        draws = [bound_by_dimension(model, x, v, (u + k) / samples) for k in range(samples)]
        return {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        return self.draw(n, context)[0]

    def draw(
        self,
        n: int,
        context: Shaped[Tensor, "n ..."] | None = None,
        *,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> tuple[Shaped[Tensor, "n ..."], int]:
        """Return samples and the number of network evaluations.

        `watch` is called with (log-SNR, x_t) at every step.
        """
        like = self._like()
        denoise, cost = self._guided(context)
        z = torch.randn(n, *self.reconstruction.shape, device=like.device, dtype=like.dtype)
        drawn = integrate(z, denoise, self.schedule, self.sampler, watch=watch)
        return self._data(drawn.x, drawn.logsnr, denoise, context), cost * (drawn.evaluations + 1)

    def inpaint(
        self,
        x: Shaped[Tensor, "B ..."],
        known: Bool[Tensor, "B ..."],
        context: Shaped[Tensor, "B ..."] | None = None,
        *,
        repeats: int = 10,
        steps: int | None = None,
    ) -> Shaped[Tensor, "B ..."]:
        """Draw the unknown part of x given the known part, by RePaint.

        Args:
            x: events; the unknown values are ignored, but must be valid values of the data.
            known: true where x is known; of x's shape.
            repeats: how often each step is made, with noise added back; more make the parts agree better.
            steps: noise levels; as many as the sampler's if None.
        """
        steps = self.sampler.steps if steps is None else steps
        if repeats < 1 or steps < 1:
            raise ValueError(f"repeats and steps must be at least 1, got {repeats} and {steps}")
        denoise, _ = self._guided(context)
        v, spread = self.reconstruction.embed(x), self.reconstruction.spread(known)
        z, logsnr = inpaint(v, spread, denoise, self.schedule, steps=steps, repeats=repeats)
        return torch.where(known, x, self._data(z, logsnr, denoise, context))

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        return self.likelihood.error(self._model(context), x, self.reconstruction.embed(x))

    def noised(self, x: Shaped[Tensor, "B ..."]) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Return (x_t, log-SNR) at noise levels drawn as the bound draws them, to train a classifier for guidance."""
        logsnr, _ = self.schedule.draw(self._stratified(len(x), self.reconstruction.embed(x)))
        return self.noised_at(x, logsnr), logsnr

    def integrand(
        self, x: Shaped[Tensor, "B ..."], logsnr: Float[Tensor, " B"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"]:
        r"""Return $\tfrac12 \lVert \epsilon - \hat\epsilon \rVert^2$ at log-SNRs, from one draw of ε each.

        In nats per unit of log-SNR. Minus its integral over the log-SNR is the continuous bound's diffusion term.
        """
        return 0.5 * draw_noise(self._model(context), self.reconstruction.embed(x), logsnr).error

    def noised_at(self, x: Shaped[Tensor, "B ..."], logsnr: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        r"""Draw $x_t = \alpha x + \sigma \epsilon$; data with levels are scaled to [-1, 1] first."""
        v = self.reconstruction.embed(x)
        return add_noise(v, torch.randn_like(v), logsnr)

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        labels = getattr(self.denoiser, "context", None)
        initialise_context(labels if isinstance(labels, nn.Module) else None, context)
        v = self.reconstruction.embed(x)
        self.control.initialise(v.flatten(1))
        if isinstance(self.denoiser, Denoiser):
            self.denoiser.initialise(v)

    def _near(self, levels: int) -> int:
        """Return how many data levels 12 standard deviations of the noise at t = 0 span; all if it is learned."""
        if next(self.schedule.parameters(), None) is not None:
            return levels
        std = math.exp(-0.5 * self.schedule.logsnr(torch.zeros(())).item())
        return max(2, math.ceil(6 * std * (levels - 1)))

    def _like(self) -> Tensor:
        """Return an empty tensor with the density's device and dtype."""
        found = next((t for t in (*self.parameters(), *self.denoiser.buffers()) if t.is_floating_point()), None)
        return torch.empty(0) if found is None else found.new_empty(0)

    def _stratified(self, count: int, v: Tensor) -> Tensor:
        """Draw u in [0, 1), stratified over the batch and in each group of `TOGETHER` neighbours.

        The draws of one example stand side by side.
        """
        if is_explicit():  # each row has noise of its own
            return torch.rand(count, dtype=v.dtype, device=v.device)
        return draw_rows(lambda n: self._stratified_rows(n, v), count)

    def _stratified_rows(self, count: int, v: Tensor) -> Tensor:
        groups = -(-count // TOGETHER)
        random = torch.rand(2, groups, TOGETHER, device=v.device)  # inductor cannot compile indexing by randperm
        quarter = random[0].argsort(1)
        within = random[1].argsort(0).gather(1, quarter).to(v.dtype) + torch.rand((), device=v.device, dtype=v.dtype)
        return ((quarter + within / groups) / TOGETHER).flatten()[:count]

    def _model(self, context: Tensor | None) -> Model:
        denoiser = graphed(self.denoiser, "denoise", self.denoiser)
        residual = graphed(self.denoiser, "residual", residual_of(self.denoiser))
        return Model(self.schedule, self.reconstruction, denoiser, residual, self.control, context)

    def _guided(self, context: Tensor | None) -> tuple[Denoise, int]:
        """Return the denoiser for sampling, and its network evaluations per call."""
        weight, classifier = self.sampler.guidance, self.sampler.classifier
        if classifier is not None:
            if context is None:
                raise ValueError("guidance needs labels: pass them as the context")
            own = context if self.conditional else None
            return by_classifier(self._model(own).denoise, classifier, context, weight), 1
        if weight == 1:
            return self._model(context).denoise, 1
        if not self.conditional or context is None:
            raise ValueError("guidance needs labels: a conditional density, with the labels as the context")
        if not getattr(self.denoiser, "unconditional", 0):
            raise ValueError(
                "guidance needs a denoiser that was trained without labels too: build it with unconditional=0.1, or "
                "pass a classifier to the sampler"
            )
        return classifier_free(graphed(self.denoiser, "denoise", self.denoiser), context, weight), 2

    def _data(self, z: Tensor, logsnr: Tensor, denoise: Denoise, context: Tensor | None) -> Tensor:
        """Return data from z at the last noise level."""
        last = logsnr.expand(len(z))
        if isinstance(self.denoiser, LevelDenoiser):
            x = self.denoiser.logits(z, last, context if self.conditional else None).argmax(-1).view(z.shape)
            return x.to(torch.uint8 if self.denoiser.levels.numel() <= 256 else torch.int64)
        return self.reconstruction.data(denoise(z, last))


def with_likelihood(density: Density, method: str, steps: int | None = None) -> Density:
    """Return a copy of a density with another likelihood; it is a diffusion, or has one as base or prior.

    Args:
        method: `vlb`, a lower bound, or `ode`, an estimate.
        steps: T of `vlb` (continuous time if None), evenly spaced in time if a chain of T steps was trained, else in
            the log-SNR; or the solver steps of `ode`.

    Raises ValueError for other methods, and for a density without a diffusion.
    """
    if method not in ("vlb", "ode"):
        raise ValueError(f"unknown method {method!r}: use vlb or ode")
    changed, diffusions = _copied(density, "method and steps choose how a diffusion's likelihood is computed")
    for diffusion in diffusions:
        if method == "vlb" and not diffusion.gaussian:
            raise ValueError(
                "a rectified flow has no bound, as its path is not Gaussian given the data: use method=ode"
            )
        chain = steps in (diffusion.schedule.steps, diffusion.objective.steps)
        if method == "vlb":
            diffusion.likelihood = VLB(steps, spacing="time" if chain else "logsnr")
        else:
            diffusion.likelihood = ODE() if steps is None else ODE(steps)
    return changed


def with_sampler(density: Density, **settings: Any) -> Density:
    """Return a copy of a density with other settings of the `Sampler` of its diffusion.

    Raises ValueError for invalid settings, and for a density without a diffusion.
    """
    changed, diffusions = _copied(density, "method, steps and guidance say how a diffusion samples")
    if "method" in settings:
        settings.setdefault("until", None)  # the last noise level was chosen for the other method
    for diffusion in diffusions:
        if not diffusion.gaussian and settings.get("method") in NOISE_ADDING:
            raise ValueError(f"a rectified flow has no score for {settings['method']}: use euler, midpoint or unipc")
        diffusion.sampler = replace(diffusion.sampler, **settings)
    return changed


def _copied(density: Density, why: str) -> tuple[Density, list[Diffusion]]:
    changed = copy.deepcopy(density)
    diffusions = [module for module in changed.modules() if isinstance(module, Diffusion)]
    if not diffusions:
        raise ValueError(f"{why}: this density has none")
    return changed, diffusions
