"""Early stopping: it stops on overfitting only, and keeps the best weights."""

import pytest
import torch

import loglik
from helpers.training import REAL, Drift, Killed, kill, settings
from loglik.networks import MLP
from loglik.training import checkpoint, fit
from loglik.training.early_stopping import EarlyStopping
from loglik.transforms import Standardise
from loglik.vae import Gaussian, KLWeighting


def scores(mean: float, spread: float = 0.0) -> torch.Tensor:
    return torch.tensor([mean - spread, mean + spread], dtype=torch.float64)


def test_a_validation_counts_if_it_is_clearly_worse_while_training_is_better() -> None:
    stopping = EarlyStopping(patience=2)
    assert stopping.update(5, scores(-3.0), -2.0) and (stopping.nats, stopping.train_nats, stopping.step) == (-3, -2, 5)
    assert not stopping.update(10, scores(-3.5), -2.5) and stopping.worse == 0  # training is worse, too
    assert not stopping.update(15, scores(-3.5), -1.0, warming_up=True) and stopping.worse == 0
    assert not stopping.update(20, scores(-3.5, spread=2.0), -1.0) and stopping.worse == 0  # within the standard error
    assert not stopping.update(25, scores(-3.5, spread=0.1), -1.0) and stopping.worse == 1
    assert not stopping.out_of_patience and (stopping.nats, stopping.step) == (-3, 5)
    assert stopping.update(30, scores(-2.9), -1.0) and stopping.worse == 0  # a new best starts the count again
    for step in (35, 40):
        assert not stopping.out_of_patience
        stopping.update(step, scores(-3.5), -0.5)
    assert stopping.out_of_patience and torch.equal(stopping.scores, scores(-2.9))
    never = EarlyStopping(patience=0)
    for step in range(9):
        never.update(step, scores(-float(step)), float(step))
    assert never.worse == 8 and not never.out_of_patience


def test_early_stopping_keeps_the_best_weights() -> None:
    run = fit(Drift(), REAL, settings=settings(max_steps=100, validate_every=2, patience=3, ema_decay=0.0))
    assert run.steps == 8  # the best validation at step 2, then three that are worse
    nats = [row["validation_nats"] for row in run.history]
    assert nats == sorted(nats, reverse=True) and len(nats) == 4
    assert -(run.density.weight.item() ** 2) == pytest.approx(nats[0], rel=1e-6)
    patient = fit(Drift(), REAL, settings=settings(max_steps=30, validate_every=2, patience=0))
    assert patient.steps == 30


def test_early_stopping_is_for_overfitting_only() -> None:
    """Where training is worse too, as in a rough stretch of steps that are too long, it may come back."""

    class Lost(Drift):
        steps = 0

        def loss(self, x, context=None):
            self.steps += 1
            return super().loss(x, context) + self.steps

    chosen = settings(max_steps=30, validate_every=2, patience=3, ema_decay=0.0)
    run = fit(Lost(), REAL, settings=chosen)
    assert run.steps == 30 and run.history[-1]["validation_nats"] < run.history[0]["validation_nats"]


def test_early_stopping_waits_for_a_warm_up() -> None:
    """While the KL's weight rises, a worse likelihood says nothing yet; a VAE tells, under a flow too."""

    class Warming(Drift):
        @property
        def warming_up(self):
            return self.weight.item() < 0.1

    chosen = settings(max_steps=100, validate_every=2, patience=3, ema_decay=0.0, learning_rate=0.01, warmup=0)
    assert fit(Warming(), REAL, settings=chosen).steps == 16  # eleven of warm-up, validations at steps 12, 14 and 16
    observation = Gaussian((2,))
    parts = MLP(2, 2, (8,)), MLP(1, observation.outputs, (8,)), observation
    own, fitted = (
        loglik.Flow([Standardise((2,))], loglik.VAE(*parts, latent=1, objective=KLWeighting(warmup=warmup)))
        for warmup in (4, 1000)
    )
    for step in range(5):
        assert own.warming_up is (step < 4)
        own.train().loss(torch.zeros(3, 2))
    fit(fitted, REAL, settings=settings(max_steps=4))  # a quarter of it at most is warm-up
    assert not fitted.warming_up and fitted.base.part == 0.75 and fitted.base.trained == 4


def test_a_run_killed_when_its_patience_ends_stays_ended(tmp_path, monkeypatch) -> None:
    chosen = settings(max_steps=100, validate_every=2, patience=3)
    with monkeypatch.context() as patch:
        kill(patch, checkpoint, "save", 4, "after")
        with pytest.raises(Killed):
            fit(Drift(), REAL, out=tmp_path / "run", settings=chosen)
    assert fit(Drift(), REAL, out=tmp_path / "run", resume=True, settings=chosen).steps == 8
