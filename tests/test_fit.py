"""fit: it learns, it repeats itself, it checks its arguments, and it stops at its limits."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import loglik
from helpers.alone import run_alone
from helpers.needs import needs
from helpers.training import (
    LABELS,
    REAL,
    RNG,
    WHOLE,
    Breaks,
    Drift,
    autoregressive,
    classifier,
    diffusion,
    flow,
    numbers,
    same,
    settings,
    vae,
    weights,
)
from loglik import runs
from loglik.data import from_arrays
from loglik.density import Bound, Density
from loglik.recipes import RECIPES
from loglik.training import NotFinite, fit, loop, validation
from loglik.training.progress import progress_bar
from loglik.transforms import Standardise


class Averaged(Density):
    """A bound whose draws only average; it keeps how many were requested."""

    event_shape = (2,)
    bound = Bound.LOWER
    importance_weighted = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.requested: set[int] = set()

    def log_prob(self, x, context=None, *, samples=1):
        if not torch.is_grad_enabled():
            self.requested.add(samples)
        return -(x - self.weight).square().sum(1)

    def sample(self, n, context=None):
        return self.weight.expand(n, 2)


@pytest.mark.parametrize(("rows", "draws"), [(1000, 4), (2000, 2), (6000, 1)])
def test_draws_that_only_average_are_fewer_where_examples_are_many(rows, draws):
    density = Averaged()
    fit(density, RNG.normal(size=(rows, 2)), max_steps=2, validate_every=2, ema_decay=0.0, progress=False)
    assert density.requested == {draws}


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (flow, REAL),
        (vae, WHOLE),
        (diffusion, REAL),
        (autoregressive, WHOLE),
        (classifier, (REAL, LABELS)),
    ],
)
def test_a_density_built_by_hand_learns_from_an_array(build, data) -> None:
    density = build()
    run = loglik.fit(density, data, max_steps=80, validate_every=20, learning_rate=1e-2, warmup=5, batch_size=64)
    assert run.density is density
    assert run.path is None
    assert [row["step"] for row in run.history] == [20, 40, 60, 80]
    first, last = run.history[0], run.history[-1]
    assert last["train_nats"] > first["train_nats"] + 0.05
    assert max(row["validation_nats"] for row in run.history) > first["validation_nats"] + 0.02
    whole = from_arrays(*data) if isinstance(data, tuple) else from_arrays(data)
    result = loglik.evaluate(run, data, split="test")
    assert result.n == len(whole.test) == 20
    assert result.steps == run.steps == 80
    assert np.isfinite(result.nats)
    assert not density.training


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("flow", REAL, {"width": 8, "depth": 2, "bins": 4}),
        ("vae", WHOLE, {"width": 16}),
        ("diffusion", WHOLE, {"width": 16, "depth": 1}),
        ("autoregressive", WHOLE, {"width": 16, "depth": 1}),
        ("classifier", (REAL, LABELS), {"width": 16}),
        ("independent", WHOLE, {}),
    ],
)
def test_a_family_by_name_repeats_itself_bit_for_bit(name, data, options) -> None:
    def train(seed: int) -> runs.Run:
        torch.manual_seed(seed + 100)  # what the user does with the global seed must not matter
        return fit(name, data, settings=settings(max_steps=8, validate_every=4, seed=seed), **options)

    run, again, other = train(0), train(0), train(1)
    assert same(weights(run.density), weights(again.density))
    assert numbers(run.history) == numbers(again.history)
    if name == "independent":
        assert run.history == [] and run.steps == 0
    else:
        assert run.steps == 8
        assert not same(weights(run.density), weights(other.density))


@pytest.mark.parametrize("shape", [(17, 17), (3, 10, 11), (1, 1, 300)])
def test_flows_learn_images_of_any_sides(shape) -> None:
    """Stripes, whose rows or columns say everything: the default flow beats what each pixel says by itself."""
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 200, size=(200, *[1] * len(shape))) + rng.integers(0, 40, size=(200, *shape))).astype(np.uint8)
    alone = loglik.evaluate(fit("independent", x), x, split="test")
    run = fit("flow", x, max_steps=20, warmup=5, batch_size=32, width=16, depth=2)
    learned = loglik.evaluate(run, x, split="test", samples=1)
    assert run.steps == 20
    assert learned.bits_per_dim < alone.bits_per_dim - 0.3


def test_a_model_with_nothing_to_train_is_an_error(monkeypatch) -> None:
    frozen = flow().requires_grad_(False)
    with pytest.raises(ValueError, match=r"Flow has nothing to train: \d+ parameters, none with a gradient: call requ"):
        fit(frozen, REAL, max_steps=1)
    bare = loglik.Flow([Standardise((2,))], loglik.StandardNormal((2,)))
    empty = replace(RECIPES["flow"], build=lambda spec, options: bare)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"flow has nothing to train: 0 parameters.*choose another kind or family"),
    ):
        patch.setitem(RECIPES, "flow", empty)
        fit("flow", REAL, max_steps=1)
    assert fit(bare, REAL).steps == 0  # it has no parameters by design
    with pytest.raises(ValueError, match="kind=glow models images of 2×2 pixels or more"):
        fit("flow:glow", np.zeros((20, 1, 1, 9), dtype=np.uint8), max_steps=1)


@pytest.mark.parametrize("name", ["flow", "vae", "diffusion", "autoregressive"])
def test_conditional_densities_train_on_pairs(name) -> None:
    y = WHOLE[:, 0]  # the label says it all, so p(x | y) is far above p(x)
    options = {"width": 16, "max_steps": 40, "validate_every": 20, "batch_size": 64, "learning_rate": 1e-2}
    run = fit(name, (WHOLE, y), conditional=True, warmup=0, **options)
    assert run.density.conditional
    x, labels = torch.from_numpy(WHOLE[:50]).to(torch.uint8), torch.from_numpy(y[:50])
    right = run.density.log_prob(x, labels, samples=4).mean()
    wrong = run.density.log_prob(x, (labels + 1) % 3, samples=4).mean()
    assert right > wrong + 0.5
    with pytest.raises(ValueError, match="needs labels"):
        fit(run.density, WHOLE, max_steps=1)


@pytest.mark.parametrize("what", ["flow", "array"])
def test_the_users_random_state_is_left_as_it_was(what) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    if what == "flow":
        fit("flow", REAL, width=8, depth=2, settings=settings(max_steps=2))
    else:
        with pytest.raises(NotFinite):
            fit(Breaks(1, "loss"), REAL, settings=settings())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_time_is_a_limit(monkeypatch) -> None:
    clock = count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 0.25 * next(clock)))
    run = fit(Drift(), REAL, max_time="10s", patience=0, batch_size=32)
    assert run.train_seconds >= 10
    assert 10 <= run.steps <= 40  # a step reads the clock once, a validation a few times more
    assert run.history[-1]["step"] == run.steps
    assert 3 <= len(run.history) <= validation.MAX_VALIDATIONS + 1
    assert [row["time"] for row in run.history] == sorted({row["time"] for row in run.history})
    assert fit(Drift(), REAL, max_time=10, max_steps=3).steps == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 0}, "max_steps must be above 0, got 0"),
        ({"max_time": "soon"}, "'soon' is not a time: write 45s, 5m or 1h"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"gradient_clip": 0}, "gradient_clip must be above 0, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"patience": -1}, "patience must not be negative, got -1"),
        ({"batch": 3}, "unknown option 'batch': training has max_steps"),
    ],
)
def test_settings_are_checked(changes, words) -> None:
    with pytest.raises(ValueError, match=words) as error:
        fit(flow(), REAL, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("density", "data", "words"),
    [
        (flow, REAL[:, :1], r"over events of shape \(2,\), the data 'array' have events of shape \(1,\)"),
        (classifier, REAL, "this density needs labels"),
        (lambda: "flaw", REAL, "unknown model 'flaw': use independent, classifier"),
        (flow, 3, r"data must be a path, a name, an array, .*, a pair \(x, y\), .*, a Dataset or Data, got int"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(density, data, words, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        fit(density(), data, out=tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run").exists()


COMPILED = """
import torch
from torch import nn
import loglik
from loglik.density import Density


class Pair(torch.autograd.Function):  # saves a tensor and a part of it, and needs both
    @staticmethod
    def forward(ctx, x):
        pair = torch.stack([x.sin(), x.cos()]) * 2
        first, part = pair.unbind()
        ctx.save_for_backward(pair, part)
        return first * part

    @staticmethod
    def backward(ctx, grad_y):
        pair, part = ctx.saved_tensors
        scaled = part * grad_y
        row = torch.arange(7.0).unsqueeze(1)
        return scaled.cumsum(1) + (row * (pair.exp() * scaled)[1].unsqueeze(1)).sum(1)


class Odd(Density):
    event_shape = (32,)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(1, 2, 32))

    def log_prob(self, x, context=None, *, samples=1):
        return -Pair.apply(x * self.scale).square().sum(1)

    def sample(self, n, context=None):
        return torch.zeros(n, 32)


weights = []
for compile in (False, True):
    density = Odd()
    loglik.fit(density, torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), max_steps=3, compile=compile,
               learning_rate=0.1, gradient_clip=1e9, optimizer="sgd", warmup=0, progress=False)
    weights.append(density.scale.detach())
torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
@needs("a C++ compiler")
def test_compiled_training_is_training():
    """With a gradient that torch's compiler gets wrong if it may write over saved tensors."""
    run_alone("-c", COMPILED)


def test_the_bar_shows_no_validation_before_there_is_one():
    with progress_bar("flow", show=True) as bar:
        bar.update(0.1, 1, 1.0, 5.0)
        assert bar.bar.tasks[0].fields["text"] == "step 1  1/s  loss 5.00"
        bar.validated(-4.5)
        bar.update(0.2, 2, 2.0, 4.0)
        assert bar.bar.tasks[0].fields["text"] == "step 2  1/s  loss 4.00  validation -4.50 nats"
