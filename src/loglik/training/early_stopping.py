"""Early stopping: the best validation so far, and how many later ones show overfitting."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

__all__ = ["EarlyStopping"]


class EarlyStopping:
    r"""Remember the best validation, and stop training after `patience` validations that show overfitting.

    A validation has a score $s_i = \log p(x_i)$ for each example i, and the best so far has the scores $b_i$. It shows
    overfitting if two things hold: the mean of $b_i - s_i$ is larger than its standard error, and the training
    likelihood is higher than it was at the best validation. A validation loss that rises while the training loss also
    rises is not overfitting: training may recover. A validation during a warm-up of the loss does not count.
    The count starts again at each new best.

    Reference: Prechelt 1998, "Early stopping, but when?".

    Attributes:
        nats, scores: the best validation: its mean, and its score of each example.
        train_nats, step: the training likelihood and the step at the best validation; step -1 before there is one.
        worse: validations since the best that show overfitting.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.nats, self.train_nats, self.step, self.worse = -math.inf, -math.inf, -1, 0
        self.scores: Shaped[Tensor, " N"] = torch.empty(0)

    @property
    def out_of_patience(self) -> bool:
        """Whether training should stop; never with a patience of 0."""
        return 0 < self.patience <= self.worse

    def update(
        self,
        step: int,
        scores: Float64[Tensor, " N"],
        train_nats: float,
        *,
        warming_up: bool = False,
        keep_last: bool = False,
    ) -> bool:
        """Count a validation; return whether it is the best so far, which only a finite one can be.

        With `keep_last` it is the newest.
        """
        nats = scores.mean().item()
        if not math.isfinite(nats):
            return False
        if nats > self.nats or keep_last:
            self.nats, self.train_nats, self.step, self.worse = nats, train_nats, step, 0
            self.scores = scores
            return True
        if not warming_up and train_nats > self.train_nats:
            behind = self.scores - scores
            error = behind.std().item() / math.sqrt(len(behind)) if len(behind) > 1 else math.inf
            self.worse += int(behind.mean().item() > error)
        return False
