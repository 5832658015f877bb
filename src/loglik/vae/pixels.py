r"""An observation model of images whose pixels depend on their preceding neighbours.

C channels, H W image, F features of a pixel, R radius of its neighbourhood, D = C·H·W dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.vae.observation import Observation, to_float32

__all__ = ["LocalPixels"]


class LocalPixels(Observation):
    r"""$p(x \mid \theta) = \prod_{ij} p(x_{ij} \mid x_{N(ij)}, \theta_{ij})$: a pixel, given its neighbours before it.

    $N(ij)$ are the pixels at most R rows above and R columns beside (i, j), and in its own row those to its left. They
    pass a masked convolution and are added to the F features $\theta_{ij}$ from the decoder; two more layers return the
    parameters of the pixel's own model. A pixel's channels are independent given these. So the
    latents need not code texture, only dependence over distances above R.

    Args:
        event_shape: (C, H, W).
        of: from an event shape to the pixels' own model, with independent dimensions and no learned parameters, such as
            `lambda shape: DiscretisedLogistic(shape, 256, 5)`.
        features: F; the decoder returns F·H·W features, in this order.
        radius: R.

    `log_prob` needs one pass, `sample` H·W small steps. Raises ValueError for an event that is not an image.

    Sources: Gulrajani et al. 2017, "PixelVAE"; Chen et al. 2017, "Variational lossy autoencoder", for the short reach.
    """

    adds_marginal = False
    marginalises = False
    offset: Tensor
    mask: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        of: Callable[[tuple[int, ...]], Observation],
        *,
        features: int = 32,
        radius: int = 3,
    ) -> None:
        if len(event_shape) != 3:
            raise ValueError(f"LocalPixels needs images (C, H, W), got events of shape {tuple(event_shape)}")
        whole = of(tuple(event_shape))
        super().__init__(event_shape, per_dim=whole.per_dim)
        channels, self.height, self.width = event_shape
        self.features, self.radius, self.discrete = features, radius, whole.discrete
        self.outputs = features * self.height * self.width
        self.whole, self.pixel = whole, of((channels,))
        self.above = nn.Conv2d(channels, features, (radius + 1, 2 * radius + 1), bias=False)
        self.hidden = nn.Conv2d(features, features, 1)
        self.last = nn.Conv2d(features, whole.per_dim * channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        mask = torch.ones(radius + 1, 2 * radius + 1)
        mask[radius, radius:] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("offset", torch.zeros(whole.outputs))

    @property
    def output(self) -> nn.Module:
        return self.last

    def _head(self, features: Float[Tensor, "B F h w"]) -> Float[Tensor, "B QC h w"]:
        """Return the parameters of a pixel's own model from the sum of its and its neighbours' features."""
        h = F.silu(features)
        return self.last(F.silu(h + self.hidden(h)))

    def _theta(self, x: Shaped[Tensor, "B C H W"], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B P2"]:
        r = self.radius
        image = F.pad(self.whole.centre(x), (r, r, r, 0))
        near = F.conv2d(image, self.above.weight * self.mask)
        features = theta.view(-1, self.features, self.height, self.width) + near
        features = features.contiguous(memory_format=torch.channels_last)
        return to_float32(self._head(features)).flatten(1) + self.offset

    def log_prob(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        return self.whole.log_prob(x, self._theta(x, theta))

    def log_prob_dims(self, x: Shaped[Tensor, "B ..."], theta: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        return self.whole.log_prob_dims(x, self._theta(x, theta))

    def sample(self, theta: Float[Tensor, "B P"]) -> Shaped[Tensor, "B ..."]:
        return self._in_turn(theta, self.pixel.sample)

    def mean(self, theta: Float[Tensor, "B P"]) -> Float[Tensor, "B ..."]:
        """Return each pixel's mean given its neighbours' means, an approximation of the expectation."""
        return self._in_turn(theta, self.pixel.mean)

    def _in_turn(self, theta: Float[Tensor, "B P"], choose: Callable[[Tensor], Tensor]) -> Shaped[Tensor, "B ..."]:
        b, r, (channels, height, width) = len(theta), self.radius, self.event_shape
        features = theta.view(b, self.features, height, width)
        offset = self.offset.view(-1, channels, height, width)
        weight = (self.above.weight * self.mask).flatten(1).T
        seen = theta.new_zeros(b, channels, height + r, width + 2 * r)
        rows = []
        for i in range(height):
            for j in range(width):
                near = seen[:, :, i : i + r + 1, j : j + 2 * r + 1].flatten(1) @ weight
                own = self._head((features[:, :, i, j] + near)[..., None, None]).flatten(1)
                value = choose(own + offset[:, :, i, j].flatten())
                rows.append(value)
                seen[:, :, i + r, j + r] = self.pixel.centre(value)
        return torch.stack(rows, -1).view(b, *self.event_shape)

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        self.whole.check(x)

    def centre(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return self.whole.centre(x)

    def marginal(self, x: Shaped[Tensor, "N ..."]) -> Float[Tensor, " P"]:
        """Return zeros: this model adds the marginal parameters itself, after its network."""
        return torch.zeros(self.outputs, device=x.device)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        self.offset.copy_(self.whole.marginal(x))
