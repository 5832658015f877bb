"""The moving average of the weights, which is evaluated and saved in place of the trained weights."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from loglik.cpu.private import copy_each_, lerp_each_, move_each_
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
        self.list_tensors(density)

    def list_tensors(self, density: Density) -> None:
        """List this rank's tensors of the average and of the density, whose parameters may have become shards."""
        kept = density.state_dict().keys()  # a mask, say, is a buffer that never changes
        self._means = [local(p) for p in self.module.parameters()]
        self._weights = [local(p) for p in density.parameters()]
        self._copies = [b for name, b in self.module.named_buffers() if name in kept]
        self._buffers_now = [b for name, b in density.named_buffers() if name in kept]
        self.updates = 0

    def next_weight(self) -> float:
        """Return the weight $1 - d$ of the next update, and count it."""
        n = self.updates
        self.updates += 1
        return 1.0 - (min(self.decay, (1 + n) / (10 + n)) if n else 0.0)

    @torch.no_grad()
    def update(self, weight: float | Float[Tensor, ""]) -> None:
        """Take the density's weights of this step into the average.

        A tensor as the weight is not read on the host; 0 leaves the average as it is.
        """
        if isinstance(weight, Tensor):
            move_each_(self._means, self._weights, weight)
            for copy, value in zip(self._copies, self._buffers_now, strict=True):
                copy.copy_(torch.where(weight > 0, value, copy))
            self.n_averaged += weight > 0
            return
        lerp_each_(self._means, self._weights, weight)
        if self._copies:
            copy_each_(self._copies, self._buffers_now)
        self.n_averaged += 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self.updates = int(self.n_averaged)
        return result
