"""A loss or gradient that is not finite stops training, says where, and keeps the last good weights."""

import pytest
import torch

import loglik
from helpers.training import REAL, Breaks, settings
from loglik.training import NotFinite, fit


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("terms", "step 13: the loss is nan, in its term 'reconstruction'; the weights of step 12 are kept"),
        ("loss", "step 13: the loss is nan; the weights of step 12 are kept"),
        ("gradient", "step 13: the gradient of weight is not finite; the weights of step 12 are kept"),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(what, words, tmp_path) -> None:
    chosen = settings(max_steps=40, validate_every=4, ema_decay=0.0)
    density = Breaks(13, what)
    with pytest.raises(NotFinite, match=words) as error:
        fit(density, REAL, out=tmp_path / "run", settings=chosen)
    assert "learning_rate" in str(error.value) and "\n" not in str(error.value)
    good = fit(Breaks(100, what), REAL, out=tmp_path / "good", settings=settings(max_steps=40))
    assert good.steps == 40
    loaded = loglik.load(tmp_path / "run", density=Breaks(0, what))
    assert torch.isfinite(density.weight).all() and density.weight.item() > 0
    assert torch.equal(loaded.density.weight, density.weight)
    assert loaded.history[-1]["step"] == 12
    assert loaded.history[-1]["validation_nats"] == pytest.approx(density.weight.item())


def test_not_finite_from_the_start_says_that_nothing_is_kept() -> None:
    with pytest.raises(NotFinite, match="step 0: the loss is nan; no weights were kept yet"):
        fit(Breaks(0, "loss"), REAL, settings=settings())
