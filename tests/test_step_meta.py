"""A training step reads nothing on the host: it runs on the device `meta`, where reading raises."""

import pytest
import torch

from helpers.densities import SPECS, draw, tiny
from helpers.graphs import fake_graphs
from helpers.meta import META, meta_training
from helpers.training import settings
from loglik.data.dataset import Split
from loglik.graphs import WARMUP
from loglik.training.average import MovingAverage
from loglik.training.batches import Batches
from loglik.training.learning_rate import rate_factor
from loglik.training.optimizers import optimizers_of
from loglik.training.step import Step

CASES = [
    ("classifier", "table"),
    ("autoregressive", "image"),
    ("autoregressive", "text"),
    ("flow", "table"),
    ("flow", "mixed table"),
    ("flow:glow", "large image"),
    ("flow:continuous", "real array"),
    ("vae", "image"),
    ("vae", "mixed table"),
    ("vae:flow", "image"),
    ("diffusion", "mixed table"),
    ("diffusion", "image256"),
]
OPTIMIZERS = [("adamw", 0.9), ("sgd", 0.0), ("muon", 0.9)]


def step_on_meta(fabric, family, spec, optimizer="muon", ema_decay=0.9, **changes) -> Step:
    torch.manual_seed(0)
    density, (x, y) = tiny(family, SPECS[spec]), draw(SPECS[spec], 32)
    event, context = (y, x) if density.event == "y" else (x, None)
    density.initialise(event, context)
    density.to(META)
    chosen = settings(optimizer=optimizer, ema_decay=ema_decay, batch_size=16, **changes)
    module, *optimizers = fabric.setup(_Loss(density), *optimizers_of(density, chosen, deferred=True))
    average = MovingAverage(density, ema_decay) if ema_decay else None
    split = Split(x.to(META), None if y is None else y.to(META))
    batches = Batches(split, batch_size=16, seed=0, fabric=fabric, accumulate=chosen.accumulate)
    return Step(fabric, density, module, optimizers, average, batches, chosen, print)


class _Loss(torch.nn.Module):
    def __init__(self, density) -> None:
        super().__init__()
        self.density = density

    def forward(self, x, context):
        return self.density.loss(x, context)


def take(step: Step, count: int = 3) -> None:
    for number in range(count):
        step.take(number, number / count, 1e-3 * rate_factor(number / count, number, 2))


@pytest.mark.parametrize(("family", "spec"), CASES)
def test_a_step_of_each_family_reads_nothing(family, spec) -> None:
    with meta_training() as fabric:
        step = step_on_meta(fabric, family, spec)
        take(step)
        with pytest.raises(RuntimeError, match="meta"):
            step.failed(look=True)


@pytest.mark.parametrize(("optimizer", "ema_decay"), OPTIMIZERS)
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"checkpoint": True}], ids=str)
def test_each_optimizer_average_and_way_to_compute_reads_nothing(optimizer, ema_decay, changes) -> None:
    with meta_training() as fabric:
        take(step_on_meta(fabric, "autoregressive", "image", optimizer, ema_decay, **changes))


def test_a_captured_step_reads_nothing() -> None:
    with meta_training() as fabric, fake_graphs() as fake:
        take(step_on_meta(fabric, "vae", "image"), WARMUP + 2)
    assert fake.captures == 1 and fake.replays == 2


@pytest.mark.parametrize("read", ["item", "bool", "nonzero"])
def test_a_loss_that_reads_is_found(read, monkeypatch) -> None:
    with meta_training() as fabric:
        step = step_on_meta(fabric, "vae", "image")
        loss = type(step.density).loss
        reads = {"item": torch.Tensor.item, "bool": bool, "nonzero": torch.nonzero}[read]
        monkeypatch.setattr(type(step.density), "loss", lambda *args: reads(loss(*args) > 0) or loss(*args))
        with pytest.raises((RuntimeError, NotImplementedError)):
            take(step)
