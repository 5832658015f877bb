r"""Training rows near a row of inputs, as components of a mixture: $w_j = e^{-d(x, x_j) / τ} / (e^b + S)$."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

__all__ = ["Neighbours"]

NEAREST = 8  # neighbours of a row
OFF = 1e30  # b, before `calibrate`: neighbours have no weight
WIDTHS = (0.0625, 0.125, 0.25, 0.5, 1.0)  # τ, in mean distances to the nearest neighbour
LOG_SCALES = (-4.0, -3.0, -2.0, -1.0)  # of the neighbours' components
BIASES = torch.linspace(-8.0, 2.0, 21, dtype=torch.float64)
MIN_GAIN = 1.0  # in standard errors of the gain, on the validation split
MISSING = 3e38  # stands for NaN, which no file of weights may have
MAX_VALUES = 2**17  # that are remembered, and stored with the weights
BLOCK = 1024  # rows at a time, each with a distance to every remembered row


class Neighbours(nn.Module):
    r"""Remember training rows, and weigh the nearest of them against a network's density.

    The weight of a row j among the J nearest is $w_j = e^{-d_j / τ} / (e^b + \sum_j e^{-d_j / τ})$, in which $d_j$ is
    the distance between features, and the network has the weight $e^b / (e^b + \sum_j e^{-d_j / τ})$: far from all
    rows, its density is the whole. A table that repeats rows, or nearly, is one that networks learn slowly.

    `choose` fits τ, b and the scale of the components to the validation split. It leaves the neighbours out where they
    do not raise its likelihood by more than the standard error of the gain.

    Args:
        rows: how many to remember at most.
        inputs, targets: numbers of columns.

    Reference: Khandelwal et al. 2020, "Generalization through memorization: nearest neighbor language models", eq. 2;
    Nadaraya 1964, "On estimating regression".
    """

    x: Tensor
    y: Tensor
    width: Tensor
    bias: Tensor
    log_scale: Tensor

    def __init__(self, rows: int, inputs: int, targets: int) -> None:
        super().__init__()
        rows = max(1, min(rows, MAX_VALUES // (inputs + targets)))
        self.register_buffer("x", torch.full((rows, inputs), MISSING))
        self.register_buffer("y", torch.full((rows, targets), MISSING))
        for name, value in (("width", 1.0), ("bias", OFF), ("log_scale", LOG_SCALES[0])):
            self.register_buffer(name, torch.tensor(value))
        self.used, self.count = False, 0  # values of the host, so that no batch waits for a GPU
        self.register_load_state_dict_post_hook(_note_use)

    @torch.no_grad()
    def remember(self, x: Shaped[Tensor, "N I"], y: Shaped[Tensor, "N D"]) -> None:
        """Remember training rows, evenly spaced where there are more than fit."""
        self.forget_use()
        step = -(-len(x) // len(self.x))
        self.count = -(-len(x) // step)
        for own, rows in ((self.x, x), (self.y, y)):
            own.fill_(MISSING)
            own[: self.count] = rows[::step].to(own).nan_to_num(nan=MISSING)

    def inputs(self) -> Float[Tensor, "R I"]:
        """Return the inputs of the remembered rows."""
        x = self.x[: self.count]
        return torch.where(x < MISSING, x, torch.nan)

    def forget_use(self) -> None:
        """Leave the neighbours out, as before `choose`."""
        self.bias.fill_(OFF)
        self.used = False

    def nearest(
        self, features: Float[Tensor, "B F"], own: Float[Tensor, "R F"]
    ) -> tuple[Float[Tensor, "B J"], Int64[Tensor, "B J"]]:
        """Return the distances to the nearest remembered rows, and their numbers, given the features of all."""
        j = torch.cat(
            [
                torch.cdist(block, own).topk(min(NEAREST, len(own)), largest=False).indices
                for block in features.split(BLOCK)
            ]
        )
        return (features[:, None] - own[j]).square().sum(-1).sqrt(), j  # the product in cdist cancels digits

    def log_weights(self, distance: Float[Tensor, "B J"]) -> tuple[Float[Tensor, "B J"], Float[Tensor, " B"]]:
        """Return the logarithms of the neighbours' weights and of the network's."""
        log_kernel = -distance / self.width
        total = torch.logaddexp(log_kernel.logsumexp(-1), self.bias)
        return log_kernel - total[:, None], self.bias - total

    @torch.no_grad()
    def choose(
        self, log_p: Float[Tensor, " N"], distance: Float[Tensor, "N J"], by_scale: list[Float[Tensor, "N J"]]
    ) -> None:
        """Choose τ, b and the scale by a validation split's likelihood: the means of their posterior on a grid.

        Args:
            log_p: of the network alone.
            distance: to the neighbours.
            by_scale: for each of `LOG_SCALES`, the log-density of each neighbour's component.
        """
        log_p, distance = log_p.double(), distance.double()
        unit = distance[:, 0].mean().clamp_min(1e-6)
        biases = BIASES.to(log_p.device)[:, None]
        gains, grid = [], []
        for width in WIDTHS:
            log_kernel = -distance / (width * unit)
            total = torch.logaddexp(log_kernel.logsumexp(-1), biases)
            for log_scale, components in zip(LOG_SCALES, by_scale, strict=True):
                near = (log_kernel + components.double()).logsumexp(-1)
                gains.append(torch.logaddexp(near, biases + log_p) - total - log_p)
                grid += [(math.log(width), bias, log_scale) for bias in BIASES.tolist()]
        gain = torch.cat(gains)
        lower = gain.mean(1) - MIN_GAIN * gain.std(1) / len(log_p) ** 0.5
        self.used = bool(lower.max() > 0)
        if self.used:
            log_width, bias, log_scale = gain.sum(1).softmax(0) @ gain.new_tensor(grid)
            for own, value in ((self.width, log_width.exp() * unit), (self.bias, bias), (self.log_scale, log_scale)):
                own.fill_(value)


def _note_use(module: Any, _: Any) -> None:
    if module.bias.device.type != "meta":
        module.used, module.count = bool(module.bias < OFF), int((module.y < MISSING).any(1).sum())
