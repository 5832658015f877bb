"""The moving average of the weights is what validation evaluates and what the run keeps."""

import pytest
import torch

from helpers.training import REAL, Drift, settings
from loglik.training import fit
from loglik.training.loop import Trainer


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_what_is_kept_is_the_moving_average(decay, monkeypatch) -> None:
    seen: list[float] = []
    check = Trainer._check_finite
    monkeypatch.setattr(
        Trainer, "_check_finite", lambda self, **look: seen.append(self.density.weight.item()) or check(self, **look)
    )  # called once after each step

    run = fit(Drift(), REAL, settings=settings(max_steps=6, validate_every=6, ema_decay=decay))
    average = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * weight
    assert len(seen) == 6
    assert run.density.weight.item() == pytest.approx(average, rel=1e-5)
    assert (average == seen[-1]) == (decay == 0)


class Counts(Drift):
    """Drift with a buffer that every training step changes, as a batch norm's moments."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, x, context=None):
        self.seen += 1
        return super().loss(x)


def test_the_averages_buffers_are_the_last() -> None:
    assert fit(Counts(), REAL, settings=settings(max_steps=6, validate_every=6, ema_decay=0.3)).density.seen == 6
