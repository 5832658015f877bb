r"""Maximum likelihood is minimal KL: a model of the subject's recipe learns data from a density that is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik import training
from loglik.data import from_arrays
from loglik.data.dataset import Data
from loglik.density import Density
from loglik.recipes import RECIPES
from loglik.verification.check import Finding, check, standard_error
from loglik.verification.events import gaussian_mixture
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["Source", "known_source", "maximum_likelihood_is_minimal_kl", "small_model"]

STEPS = (2, 40, 200)  # of training, after which cross-entropy and KL are measured
EXAMPLES = 2000
FRESH = 2000
SAMPLES = 32  # of a bound whose draws are importance weights
DRAWS = 4  # of a bound whose draws only average, as examples do
CORRELATION = 0.8
SIZES = {"width": 32, "depth": 2, "dropout": 0.0}  # of the small model, where the recipe has the option


@check(
    "minimal-kl",
    section="Autumn 2025, B2: likelihood",
    statement=r"\mathbb E_{p_{data}}[-\log p_\theta(x)] = KL(p_{data} \Vert p_\theta) + H(p_{data})",
)
def maximum_likelihood_is_minimal_kl(subject: Subject) -> Iterator[Finding]:
    """On data from a known density, the NLL minus the entropy is the KL divergence, and both fall along training.

    A small model of the same recipe learns 2,000 examples: four bits for data with levels, two values with a label
    for a classifier, two numbers from a mixture of Gaussians for real data. The NLL is that of fresh
    examples; the KL divergence is a sum over all events, or a quadrature.
    """
    source = known_source(subject)
    gaps, kls = [], []
    for count in STEPS[:1] if subject.density.closed_form else STEPS:
        density = small_model(subject, source, count)
        nll = -source.log_probs(density, *source.fresh(subject.seed))
        excess, kl = nll - source.surprise(subject.seed), source.kl(density)
        error = standard_error(excess)
        gaps.append((count, excess.mean().item(), kl, error))
        kls.append(source.kl(density, samples=1))  # of a bound what training minimises, with one sample
    for count, gap, kl, error in gaps:
        computed = f"NLL - H after {count} steps, KL = {kl:.4g} nats"
        yield Finding.equal(computed, gap, kl, stderr=error, tolerance=0.01)
    if len(kls) > 1:
        yield Finding.at_most(
            f"KL as trained on, after {STEPS[-1]} steps, at most that after {STEPS[0]}", kls[-1], kls[0], tolerance=0.05
        )


def small_model(subject: Subject, source: Source, steps: int) -> Density:
    """Train a small model of the subject's recipe and options on a known density; DoesNotApply where that fails."""
    known = RECIPES[subject.model.partition(":")[0]].options if _has_recipe(subject) else {}
    if not known:
        raise DoesNotApply("this density has no recipe by which a second one could be trained on known data")
    options = {k: v for k, v in subject.options.items() if k not in ("size", "conditional")}
    options |= {key: value for key, value in SIZES.items() if key in known}
    try:
        run = training.fit(
            subject.model,
            source.data,
            max_steps=steps,
            validate_every=steps,  # once, so that the weights are those of the last step
            seed=subject.seed,
            progress=False,
            batch_size=256,
            **options,
        )
    except ValueError as reason:
        raise DoesNotApply(f"a small model with these options cannot be built: {reason}") from reason
    return run.density.eval()


def _has_recipe(subject: Subject) -> bool:
    return subject.model.partition(":")[0] in RECIPES


@dataclass(frozen=True)
class Source:
    """A known density: data from it, all of its events (or the nodes of a quadrature) and their log-probabilities.

    Attributes:
        data: examples of it.
        events: what a density's `log_prob` accepts, (N, ...), with `contexts` for p(y | x).
        weights: the measure of each event: its probability, times the width of the quadrature.
        log_p: of the known density, in nats.
    """

    data: Data
    events: Shaped[Tensor, "N ..."]
    contexts: Shaped[Tensor, "N ..."] | None
    weights: Float[Tensor, " N"]
    log_p: Float[Tensor, " N"]

    def fresh(self, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return examples that no training saw."""
        rows = self._rows(seed)
        return self.events[rows], None if self.contexts is None else self.contexts[rows]

    def surprise(self, seed: int) -> Float[Tensor, " B"]:
        """Return -log p of these examples under the known density; its mean is near the entropy."""
        return -self.log_p[self._rows(seed)]

    def kl(self, density: Density, samples: int | None = None) -> float:
        """Return KL(p || q) as a sum over all events, each with the mean of many draws where log q is a bound."""
        repeats = max(1, FRESH // len(self.events))
        events = self.events.repeat_interleave(repeats, 0)
        contexts = None if self.contexts is None else self.contexts.repeat_interleave(repeats, 0)
        log_q = self.log_probs(density, events, contexts, samples).view(-1, repeats).mean(1)
        return (self.weights * (self.log_p - log_q)).sum().item()

    def log_probs(
        self, density: Density, x: Tensor, context: Tensor | None, samples: int | None = None
    ) -> Float[Tensor, " B"]:
        """Return log q in nats, of a bound with a number of samples."""
        samples = samples or (SAMPLES if density.importance_weighted else DRAWS)
        device = density.device
        density.eval()
        with torch.no_grad():
            there = None if context is None else context.to(device)
            return density.log_prob(x.to(device), there, samples=samples).double().cpu()

    def _rows(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + 1)
        return torch.multinomial(self.weights, FRESH, replacement=True, generator=generator)


def known_source(subject: Subject) -> Source:
    """Return a known density of the kind of the subject's data."""
    spec = subject.data.spec
    if spec.kind == "text":
        raise DoesNotApply("a text's windows have no small known density to learn")
    generator = torch.Generator().manual_seed(subject.seed)
    if subject.density.event == "y":
        return _labels(generator)
    if spec.levels is not None:
        return _levels(generator)
    return _mixture(generator)


def _levels(generator: torch.Generator) -> Source:
    r"""Return four bits of which neighbours agree: $p(x) \propto e^{J \sum_{i \sim j} [x_i = x_j]}$, J = 0.8."""
    bits = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 2, 2)
    agree = (bits[:, :, 0] == bits[:, :, 1]).sum((1, 2)) + (bits[:, :, :, 0] == bits[:, :, :, 1]).sum((1, 2))
    p = (0.8 * agree.double()).softmax(0)
    rows = torch.multinomial(p, EXAMPLES, replacement=True, generator=generator)
    events = bits.to(torch.uint8)
    return Source(from_arrays(events[rows].numpy()), events, None, p, p.log())


def _labels(generator: torch.Generator) -> Source:
    """Return one of two labels given two values of three levels."""
    x = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8).view(9, 1, 1, 2)
    rate = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=torch.float64) / 10
    joint = torch.stack([1 - rate, rate], 1).flatten() / 9
    rows = torch.multinomial(joint, EXAMPLES, replacement=True, generator=generator)
    contexts, labels = x.repeat_interleave(2, 0), torch.arange(2).repeat(9)
    data = from_arrays(contexts[rows].numpy(), labels[rows].numpy())
    return Source(data, labels, contexts, joint, torch.stack([1 - rate, rate], 1).flatten().log())


def _mixture(generator: torch.Generator) -> Source:
    """Return two numbers from a mixture of two Gaussians that cross, and a grid over nearly all of them."""
    one, c = torch.ones(2, dtype=torch.float64), CORRELATION
    covariances = torch.tensor([[[1, c], [c, 1]], [[1, -c], [-c, 1]]], dtype=torch.float64)
    means = torch.stack([-1.5 * one, 1.5 * one])
    law = gaussian_mixture(one / 2, means, covariances)
    rows = torch.randint(2, (EXAMPLES,), generator=generator)
    noise = torch.randn(EXAMPLES, 2, 1, dtype=torch.float64, generator=generator)
    x = means[rows] + (torch.linalg.cholesky(covariances)[rows] @ noise).squeeze(2)
    data = from_arrays(x.numpy())
    ticks = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    log_p = law.log_prob(grid)
    near = log_p > log_p.max() - 16  # the rest has a probability of 1e-7
    grid, log_p = grid[near], log_p[near]
    weights = log_p.exp() * (ticks[1] - ticks[0]) ** 2
    return Source(data, grid.float(), None, weights / weights.sum(), log_p)
