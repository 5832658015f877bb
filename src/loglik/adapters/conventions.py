"""Check a network's convention against its own noise: right ones remove noise, wrong ones do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.adapters.paths import VE, VP, FlowMatching, Steps
from loglik.adapters.wrapped import Wrapped
from loglik.diffusion.schedule import add_noise

__all__ = ["SEED", "Errors", "check_convention", "errors"]

NOISE = (0.1, 0.3, 1.0, 3.0, 10.0)  # standard deviations of the noise, in units of the data's
MIN_VALUES, MAX_VALUES = 2048, 2**18  # that are denoised at each noise level; few rows are repeated
MIN_ROWS, MAX_ROWS = 8, 64
FITS, FAILS = 1.25, 4.0  # error of the denoiser over that of the better of the mean and of the noised data
SEED = 2_718_281_828  # of the noise: not a seed that data were drawn with, whose numbers it would repeat
BETTER = 0.8  # score of another convention, over that of the chosen one
SAME = 0.95  # of two that fit almost alike the first is named: the path that was chosen
LEARNED = 0.95  # score over that of the best multiple of the noised data, which a call that returns 0 may be read as


class Errors(NamedTuple):
    """The mean squared errors of a denoiser at noise levels, over the data's variance.

    `best` is that of the better of two guesses that need no network: the mean, 1, and `noised`, the noised data.
    """

    sigma: Float[Tensor, " N"]
    own: Float[Tensor, " N"]
    noised: Float[Tensor, " N"]

    @property
    def best(self) -> Float[Tensor, " N"]:
        return self.noised.clamp(max=1.0)

    @property
    def ratio(self) -> Float[Tensor, " N"]:
        return (self.own / self.best).nan_to_num(torch.inf)

    @property
    def score(self) -> float:
        """The geometric mean of the ratios."""
        return self.ratio.log().mean().exp().item()

    @property
    def linear_score(self) -> float:
        """The score of the best multiple of the noised data, which is exact for data from N(0, I)."""
        linear = 1 / (1 + self.noised.reciprocal())
        return (linear / self.best).log().mean().exp().item()


@torch.no_grad()
def errors(wrapped: Wrapped, v: Float[Tensor, "B ..."], context: Tensor | None = None) -> Errors:
    """Return the errors of a denoiser on data v, with noise of a generator of their own."""
    size = v[0].numel()
    count = max(math.ceil(MIN_VALUES / size), min(len(v), MAX_ROWS, max(MIN_ROWS, MAX_VALUES // size)))
    rows = torch.arange(count, device=v.device) % len(v)
    v, context = v[rows], None if context is None else context[rows]
    epsilon = torch.randn(v.shape, generator=torch.Generator().manual_seed(SEED), dtype=v.dtype).to(v.device)
    variance = (v - v.mean()).square().mean()
    schedule = wrapped.path.schedule(wrapped.scale)
    high, low = schedule.ends(v)
    logsnr = (-torch.log(torch.tensor(NOISE, dtype=v.dtype, device=v.device).square() * variance)).clamp(low, high)
    own = []
    for level in logsnr:
        each = level.expand(len(v))
        own.append((wrapped(add_noise(v, epsilon, each), each, context) - v).square().mean() / variance)
    noised = torch.exp(-logsnr) / variance
    return Errors(torch.exp(-0.5 * logsnr).cpu(), torch.stack(own).cpu(), noised.cpu())


def check_convention(
    wrapped: Wrapped, v: Float[Tensor, "B ..."], context: Tensor | None = None, *, spans: bool = False
) -> None:
    """Raise ValueError where a network does not remove noise from data v, and name the convention in which it does.

    At low noise a denoiser must beat the noised data, at high noise the mean, and on the whole their best multiple. A
    network that is little trained passes while no other convention fits it.

    Args:
        spans: whether the data are integers, which a network may read on another interval.
    """
    if not (v - v.mean()).square().mean() > 0:
        return  # equal values say nothing
    found = errors(wrapped, v, context)
    worst = int(found.ratio.argmax())
    ratio = found.ratio[worst].item()
    fits = ratio <= FITS and found.score <= LEARNED * found.linear_score
    better, best = None, BETTER * found.score
    for name, other in _others(wrapped, spans):
        if fits and (other.path, other.scale, other.shift) != (wrapped.path, wrapped.scale, wrapped.shift):
            break  # only another prediction may fit as well
        try:
            tried = errors(other, v, context)
        except Exception:  # another convention's labels may be none that the call accepts
            continue
        if tried.ratio.max() <= FITS and tried.score < (best if better is None else SAME * best):
            better, best = (name, tried.own[(tried.sigma - found.sigma[worst]).abs().argmin()].item()), tried.score
    if better is None and ratio <= FAILS:
        return
    guess = "the mean" if found.best[worst] >= 1 else "the noised data"
    line = (
        f"this call does not denoise at σ={found.sigma[worst]:.3g}: error {found.own[worst]:.3g} against "
        f"{found.best[worst]:.3g} of {guess}"
    )
    if better is None:
        raise ValueError(f"{line}; no other convention fits either: is it trained, and on data like these?")
    raise ValueError(f"{line}; it does as {better[0]} ({better[1]:.2g})")


def _others(wrapped: Wrapped, spans: bool) -> Iterator[tuple[str, Wrapped]]:
    """Yield other conventions of a call, each with what a user writes to choose it."""
    own, scale, shift = wrapped.path, wrapped.scale, wrapped.shift
    ends = (own.sigma_min, own.sigma_max) if isinstance(own, VE) else (0.002, 80.0)
    paths = [
        ("prediction={!r}", own),
        ("convention='edm', prediction={!r}", VE(*ends, name="edm")),
        ("convention='vp', prediction={!r}", Steps()),
        ("convention='vp', prediction={!r}, schedule=LinearBeta()", VP()),
        ("convention='vp', prediction={!r}, schedule=LinearBeta(), time_scale=999", VP(time_scale=999.0)),
        ("convention='flow', prediction={!r}, data_at=1", FlowMatching(1)),
        ("convention='flow', prediction={!r}, data_at=0", FlowMatching(0)),
        ("convention='flow', prediction={!r}, data_at=0, time_scale=1000", FlowMatching(0, time_scale=1000.0)),
    ]
    intervals = [(scale, shift, "")]
    if spans:
        intervals += [
            (s, m, f", span=({m - s:g}, {m + s:g})") for s, m in ((1.0, 0.0), (0.5, 0.5)) if (s, m) != (scale, shift)
        ]
    # the path that was chosen first, on every interval
    for words, path, interval in [(*paths[0], i) for i in intervals] + [(*p, i) for i in intervals for p in paths[1:]]:
        s, m, suffix = interval
        for prediction in path.predictions:
            if path is not own or (prediction, s, m) != (wrapped.prediction, scale, shift):
                yield words.format(prediction) + suffix, wrapped.renamed(path, prediction, s, m)
