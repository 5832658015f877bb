"""The moving average of the weights, which is evaluated and saved in place of the trained weights."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel

from loglik.cpu.private import copy_each_, lerp_each_
from loglik.density import Density
from loglik.training.sharding import local

__all__ = ["MovingAverage"]


class MovingAverage(AveragedModel):
    r"""An exponential moving average of a density's weights, $\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta$.

    After n steps the decay is $d = \min(\text{decay}, (1 + n) / (10 + n))$. It starts low, so that the initial weights
    are soon forgotten. Buffers of the state, such as a batch norm's moments, are copied.

    The tensors are listed once: torch's own update sorts them at every step, which took as long as the averaging.
    """

    def __init__(self, density: Density, decay: float) -> None:
        super().__init__(density)
        self.decay = decay
        self.follow(density)

    def follow(self, density: Density) -> None:
        """List this rank's tensors of the average and of the density, whose parameters may have become shards."""
        kept = density.state_dict().keys()  # a mask, say, is a buffer that never changes
        mine, theirs = self.module, density
        self._means = [local(p) for p in mine.parameters()]
        self._weights = [local(p) for p in theirs.parameters()]
        self._copies = [b for name, b in mine.named_buffers() if name in kept]
        self._buffers_now = [b for name, b in theirs.named_buffers() if name in kept]

    @torch.no_grad()
    def update(self) -> None:
        """Take the density's weights of this step into the average."""
        n = int(self.n_averaged)
        now = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        lerp_each_(self._means, self._weights, 1 - now)
        if self._copies:
            copy_each_(self._copies, self._buffers_now)
        self.n_averaged += 1
