"""A step that reads nothing on the host makes the weights of one that does, also as a graph, in parts and in blocks."""

from itertools import chain

import numpy as np
import pytest
import torch

import loglik
from helpers.densities import SPECS
from helpers.graphs import fake_graphs
from helpers.training import (
    LABELS,
    REAL,
    WHOLE,
    Breaks,
    autoregressive,
    classifier,
    diffusion,
    flow,
    settings,
    vae,
    weights,
)
from loglik.graphs import WARMUP
from loglik.networks import CausalTransformer
from loglik.recipes import build
from loglik.training import NotFinite, arrivals, fit, loop, step
from loglik.training.recompute import repeated_blocks
from loglik.training.settings import TrainingSettings

REAL3 = np.concatenate([REAL, REAL[:, :1] ** 2], axis=1)
OPTIMIZERS = ("adamw", "sgd", "muon")


@pytest.fixture
def deferred(monkeypatch) -> None:
    for module in (step, loop):
        monkeypatch.setattr(module, "defers", lambda device, precision: True)


def trained(make=lambda: flow(dropout=0.3), data=REAL, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return weights(fit(make(), data, settings=settings(**{"learning_rate": 1e-2, **changes})).density)


def close(a, b, **tolerances) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], **{"rtol": 1e-5, "atol": 1e-6, **tolerances})


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_device_decides_as_the_host_does(optimizer, ema_decay, request) -> None:
    changes = {"optimizer": optimizer, "ema_decay": ema_decay, "momentum": 0.9, "gradient_clip": 0.5}
    plain = trained(**changes)
    request.getfixturevalue("deferred")
    close(trained(**changes), plain)


@pytest.mark.parametrize("good", [0, 13])
@pytest.mark.parametrize("what", ["terms", "loss", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(good, what, optimizer, deferred, monkeypatch) -> None:
    density, made = Breaks(good, what), []
    chosen = settings(max_steps=400, validate_every=400, ema_decay=0.9, optimizer=optimizer)
    with monkeypatch.context() as patch:
        take = step.Step.take
        patch.setattr(
            step.Step, "take", lambda self, *args: made.append((density.weight.item(), self)) or take(self, *args)
        )
        with pytest.raises(NotFinite) as error:
            fit(density, REAL, settings=chosen)
    words = {"terms": "the loss is nan, in its term 'reconstruction'", "loss": "the loss is nan"}
    assert str(error.value).startswith(f"step {good}: {words.get(what, 'the gradient of weight is not finite')}; ")
    assert len(made) == arrivals.STEPS_BETWEEN_READS  # the host looked once
    assert len({weight for weight, _ in made[good:]}) == 1  # bit for bit from there on
    average = made[-1][1].average
    if good == 0:
        assert density.weight.item() == average.module.weight.item() == 0 == average.n_averaged
    else:
        assert len({weight for weight, _ in made[: good + 1]}) == good + 1 and average.n_averaged == good
        assert 0 < average.module.weight.item() < density.weight.item()
    for state in chain.from_iterable(o.state.values() for o in made[-1][1].optimizers):
        assert all(value.isfinite().all() for value in state.values())
        assert state.get("step", torch.tensor(good)) == good


def state_of(steps) -> list[torch.Tensor]:
    """All that a step changes."""
    own = [v for v in vars(steps).values() if isinstance(v, torch.Tensor)]
    optimizers = [v for o in steps.optimizers for s in o.state.values() for v in s.values()]
    average = steps.average.state_dict().values() if steps.average else []
    return [*own, *optimizers, *average, *steps.density.state_dict().values()]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_replayed_step_is_the_step(optimizer, fails, deferred, monkeypatch) -> None:
    changes = {"optimizer": optimizer, "ema_decay": 0.9, "max_steps": 12}
    plain, made = trained(**changes), []
    monkeypatch.setattr(step.Step, "__init__", _recorded(step.Step.__init__, made))
    lines: list[str] = []
    monkeypatch.setattr(loop.Trainer, "__init__", _reporting(loop.Trainer.__init__, lines))
    with fake_graphs(lambda: state_of(made[-1]), fails=fails) as fake:
        graphed = trained(**changes)
    assert all(torch.equal(graphed[name], plain[name]) for name in plain)
    (steps,) = made
    assert list(steps._graphed._calls.values()) == [WARMUP + 1] and len(steps._graphed._graphs) == (not fails)
    assert fails or fake.replays >= 12 - WARMUP  # validations replay too
    assert len(lines) == fails and all(line.startswith("no CUDA graph") for line in lines)
    with fake_graphs(lambda: state_of(made[-1])):
        trained(**changes, cuda_graph=False)
        trained(**changes, accumulate=2)
    assert not made[1]._graphed._calls and not made[2]._graphed._calls


def _recorded(init, made):
    def recorded(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    return recorded


def _reporting(init, lines):
    def reporting(self, *args):
        init(self, *args[:5], lines.append)

    return reporting


@pytest.mark.parametrize(
    "make",
    [lambda: flow(dropout=0.3), vae, diffusion, autoregressive, classifier],
    ids=["flow", "vae", "diffusion", "autoregressive", "classifier"],
)
def test_parts_make_the_weights_of_the_whole_batch(make) -> None:
    data = {"VAE": WHOLE, "Autoregressive": WHOLE}.get(type(make()).__name__, REAL)
    data = (REAL, LABELS) if type(make()).__name__ == "Classifier" else data
    whole = trained(make, data, optimizer="sgd")  # AdamW enlarges rounding where a gradient is 0, as a key's bias's is
    close(trained(make, data, optimizer="sgd", accumulate=4), whole)


def test_a_batch_must_have_equal_parts() -> None:
    with pytest.raises(ValueError, match=r"batch_size 32 must be a multiple of 5 \(1 device times accumulate=5\)"):
        fit(flow(), REAL, settings=settings(accumulate=5))
    with pytest.raises(ValueError, match="accumulate must be above 0, got 0"):
        TrainingSettings(accumulate=0)


def blocks(dropout: float = 0.3) -> loglik.Autoregressive:
    return loglik.Autoregressive(CausalTransformer(16, 3, 2, dropout=dropout), (4,), 3)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_blocks_that_are_computed_again_have_the_same_noise_and_weights(accumulate, monkeypatch) -> None:
    calls = []
    block = type(repeated_blocks(blocks())[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *a, **k: calls.append(self) or forward(self, *a, **k))
    options = {"max_steps": 6, "accumulate": accumulate, "optimizer": "sgd"}
    plain, plain_calls = trained(blocks, WHOLE, **options), len(calls)
    calls.clear()
    again = trained(blocks, WHOLE, **options, checkpoint=True)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    validated = plain_calls - 3 * 6 * accumulate
    assert len(calls) == 2 * 3 * 6 * accumulate + validated  # each block twice a step
    assert "forward" not in vars(calls[0])


def test_a_flows_transforms_are_blocks_and_a_model_without_blocks_is_refused() -> None:
    spline = build("flow:nsf", SPECS["table"], width=8)
    found = repeated_blocks(spline)
    assert len(found) > 1 and len({type(block) for block in found}) == 1
    plain = trained(lambda: build("flow:nsf", SPECS["table"], width=8), REAL3, max_steps=4)
    again = trained(lambda: build("flow:nsf", SPECS["table"], width=8), REAL3, max_steps=4, checkpoint=True)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    with pytest.raises(ValueError, match="checkpoint=True is for networks of repeated blocks") as error:
        fit(vae(), WHOLE, settings=settings(checkpoint=True))
    assert "\n" not in str(error.value)
