"""Wrapped: a network of any convention as the denoiser of a `Diffusion`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.adapters.paths import NoiseLevel, Path, shifted, target
from loglik.diffusion.schedule import alpha, broadcast_like

__all__ = ["Wrapped", "needed"]


class Wrapped(nn.Module):
    r"""The expected data v given our $x_t$, from a network of another convention.

    The network reads data $w = s\,v + m$ on its own path; see `paths`.

    Args:
        call: from (y, labels), and the classes if there are some, to a prediction of y's shape.
        path: the convention.
        prediction: what the network predicts; the path's usual one if None.
        scale, shift: s and m.
        classes: the number of classes that the network reads; None if it reads none.
        doubled: the call returns twice the channels, of which the second half is for the variances.
        module: the network inside `call`, which is moved, counted and set to evaluation with the density.
    """

    anchor: Tensor

    def __init__(
        self,
        call: Callable[..., Tensor],
        path: Path,
        prediction: str | None = None,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        classes: int | None = None,
        doubled: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.call, self.path, self.classes, self.doubled = call, path, classes, doubled
        self.module = None if module is call else module
        self.prediction = prediction or path.predictions[0]
        self.scale, self.shift = scale, shift
        self.context = None if classes is None else nn.Identity()  # a `Diffusion` with one is conditional
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # has the density's dtype
        if self.prediction not in path.predictions:
            raise ValueError(f"{path.name} has no prediction {prediction!r}: use {', '.join(path.predictions)}")

    def renamed(self, path: Path, prediction: str, scale: float, shift: float) -> Wrapped:
        """Return the same call, read in another convention."""
        other = Wrapped(
            self.call,
            path,
            prediction,
            scale=scale,
            shift=shift,
            classes=self.classes,
            doubled=self.doubled,
            module=self.module,
        )
        return other.to(self.anchor)

    def to_network(self, v: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return the network's data w of data v."""
        return self.scale * v + self.shift

    def level(self, logsnr: Float[Tensor, " B"]) -> NoiseLevel:
        """Return the noise level of the network's path from the log-SNR of v."""
        return self.path.at(shifted(logsnr, self.scale))

    def predict(
        self, y: Float[Tensor, "B ..."], level: NoiseLevel, context: Tensor | None = None
    ) -> Float[Tensor, "B ..."]:
        """Return what the network predicts from y, in y's dtype."""
        return self.predict_with_variance(y, level, context)[0]

    def predict_with_variance(
        self, y: Float[Tensor, "B ..."], level: NoiseLevel, context: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return what the network predicts from y, and where its output is doubled what it says of the variances."""
        own = next((p for p in self.parameters() if p.is_floating_point()), y)
        label = level.label.to(own.dtype) if level.label.is_floating_point() else level.label
        inputs = self.path.read(y, level).to(own.dtype), label
        output = self.call(*inputs) if self.classes is None else self.call(*inputs, needed(context).long())
        want = (len(y), 2 * y.shape[1], *y.shape[2:]) if self.doubled else tuple(y.shape)
        if not isinstance(output, Tensor) or output.shape != want:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"the call must return a tensor of shape {want}, got {got}")
        return output.to(y.dtype).split(y.shape[1], 1)

    def forward(
        self, x_t: Float[Tensor, "B ..."], logsnr: Float[Tensor, " B"], context: Tensor | None = None
    ) -> Float[Tensor, "B ..."]:
        """Return the expected v given x_t."""
        level = self.level(logsnr)
        y = broadcast_like(level.a, x_t) * self.to_network(x_t / broadcast_like(alpha(logsnr), x_t))
        return (self.from_output(self.predict(y, level, context), y, level) - self.shift) / self.scale

    def from_output(
        self, output: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], level: NoiseLevel
    ) -> Float[Tensor, "B ..."]:
        """Return the expected w from a prediction."""
        a, b, p, q = self._factors(level, y)
        return (q * y - b * output) / (q * a - b * p)

    def residual(
        self,
        v: Float[Tensor, "B ..."],
        epsilon: Float[Tensor, "B ..."],
        logsnr: Float[Tensor, " B"],
        context: Tensor | None = None,
    ) -> Float[Tensor, "B ..."]:
        r"""Return $\hat\epsilon - \epsilon$ from the error of the prediction itself, which rounds least."""
        level = self.level(logsnr)
        a, b, p, q = self._factors(level, v)
        w = self.to_network(v)
        output = self.predict(a * w + b * epsilon, level, context)
        return a * (output - p * w - q * epsilon) / (q * a - b * p)

    def _factors(self, level: NoiseLevel, like: Tensor) -> tuple[Tensor, ...]:
        p, q = target(self.path, self.prediction, level)
        return tuple(broadcast_like(value.to(like.dtype), like) for value in (level.a, level.b, p, q))


def needed(context: Tensor | None) -> Tensor:
    if context is None:
        raise ValueError("this model is p(x | class): pass the labels as the context")
    return context
