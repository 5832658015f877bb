"""fit: it learns, it repeats itself, it survives being killed, and it stops when it should."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import loglik
from helpers.alone import run_alone
from helpers.needs import needs
from loglik import runs
from loglik.data import from_arrays
from loglik.density import Bound, Density
from loglik.diffusion import Denoiser, Sampler
from loglik.flows import Coupling, Elementwise, Spline
from loglik.flows.spline import parameters_per_dim
from loglik.networks import MLP, CausalTransformer, ResidualMLP
from loglik.recipes import RECIPES
from loglik.training import NotFinite, TrainingSettings, checkpoint, fit, loop
from loglik.training.progress import progress_bar
from loglik.transforms import Standardise
from loglik.vae import Categorical, Gaussian, KLWeighting

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, size=200)
REAL = np.stack([LABELS + 0.1 * RNG.normal(size=200), LABELS + 0.1 * RNG.normal(size=200)], axis=1)
WHOLE = np.repeat(RNG.integers(0, 3, size=(200, 1)), 4, axis=1)  # four equal numbers: much to learn


def flow(dropout: float = 0.0) -> loglik.Flow:
    network = MLP(1, parameters_per_dim(4), (16,), dropout=dropout)
    transforms = [Standardise((2,)), Coupling([False, True], network, Spline(4, 4.0)), Elementwise(2, Spline(4, 4.0))]
    return loglik.Flow(transforms, loglik.StandardNormal((2,)))


def vae() -> loglik.VAE:
    observation = Categorical((4,), 3)
    return loglik.VAE(MLP(4, 4, (32,)), MLP(2, observation.outputs, (32,)), observation, latent=2)


def diffusion() -> loglik.Diffusion:
    return loglik.Diffusion(Denoiser(ResidualMLP(2, 2, width=32, depth=1, context=32)), (2,), sampler=Sampler(steps=5))


def autoregressive() -> loglik.Autoregressive:
    return loglik.Autoregressive(CausalTransformer(16, 1, 2), (4,), 3)


def classifier() -> loglik.Classifier:
    return loglik.Classifier(MLP(2, 8, (16,)), MLP(8, 2, (16,)), 2)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"max_steps": 24, "validate_every": 6, "batch_size": 32, "warmup": 2, **changes})


class Killed(BaseException):
    """As if the process had ended here."""


class Drift(Density):
    """Training moves `weight` up by the learning rate a step, and every step up makes the likelihood worse."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.weight = nn.Parameter(torch.zeros(1))

    def log_prob(self, x, context=None, *, samples=1):
        return -(self.weight**2).expand(len(x))

    def loss(self, x, context=None):
        return -self.weight.sum()

    def sample(self, n, context=None):
        return torch.zeros(n, 2)


class Breaks(Drift):
    """Improves for `good` steps; then a term of the loss, or the gradient alone, is not a number."""

    def __init__(self, good: int, what: str) -> None:
        super().__init__()
        self.good, self.what = good, what

    def log_prob(self, x, context=None, *, samples=1):
        return self.weight.expand(len(x))

    def loss(self, x, context=None):
        self.good -= 1
        if self.good >= 0:
            return -self.weight.sum()
        if self.what == "gradient":
            return (0 * self.weight).sqrt().sum()
        return self.weight.sum() * torch.nan

    def terms(self, x, context=None, *, samples=1):
        fine = torch.zeros(len(x))
        return {} if self.what == "loss" else {"prior": fine, "reconstruction": fine + torch.nan, "rest": fine}


def weights(density: Density) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in density.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of a history without the time, which no run repeats."""
    return [{name: value for name, value in row.items() if name != "time"} for row in history]


class Averaged(Density):
    """A bound whose draws only average; it keeps how many were asked for."""

    event_shape = (2,)
    bound = Bound.LOWER
    importance_weighted = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.asked: set[int] = set()

    def log_prob(self, x, context=None, *, samples=1):
        if not torch.is_grad_enabled():
            self.asked.add(samples)
        return -(x - self.weight).square().sum(1)

    def sample(self, n, context=None):
        return self.weight.expand(n, 2)


@pytest.mark.parametrize(("rows", "draws"), [(1000, 4), (2000, 2), (6000, 1)])
def test_draws_that_only_average_are_fewer_where_examples_are_many(rows, draws):
    density = Averaged()
    fit(density, RNG.normal(size=(rows, 2)), max_steps=2, validate_every=2, ema_decay=0.0, progress=False)
    assert density.asked == {draws}


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
    held = from_arrays(*data) if isinstance(data, tuple) else from_arrays(data)
    result = loglik.evaluate(run, data, split="test")
    assert result.n == len(held.test) == 20
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
    empty = replace(RECIPES["flow"], build=lambda spec, *, size="small": bare)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"flow has nothing to train: 0 parameters.*choose another kind or family"),
    ):
        patch.setitem(RECIPES, "flow", empty)
        fit("flow", REAL, max_steps=1)
    assert fit(bare, REAL).steps == 0  # it has no parameters by design
    with pytest.raises(ValueError, match="kind=glow takes images of 2×2 pixels or more"):
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


def test_the_order_of_the_data_is_a_function_of_seed_and_epoch(monkeypatch) -> None:
    batches: list[list[int]] = []
    rows_of = loop._Trainer._rows
    monkeypatch.setattr(loop._Trainer, "_rows", lambda self: batches.append(rows_of(self).tolist()) or rows_of(self))

    def order(**changes) -> list[list[int]]:
        batches.clear()
        fit(Drift(), REAL, settings=settings(max_steps=10, **changes))
        return [[row for batch in batches[start : start + 5] for row in batch] for start in (0, 5)]  # two epochs

    first, second = order()
    assert sorted(first) == sorted(second) == list(range(160))
    assert first != second
    assert order(learning_rate=1e-4, precision="bf16-mixed") == [first, second]
    assert order(seed=1)[0] not in (first, second)


CRASHES = {
    # where the process ends: the function whose n-th call raises, before or after it has done its work
    "in a step": (loop._Trainer, "_batch", 16, "before"),
    "before the first checkpoint": (loop._Trainer, "_batch", 3, "before"),
    "before the weights of the best step": (runs, "write_weights", 2, "before"),
    "before a checkpoint": (checkpoint, "save", 3, "before"),
    "while writing a checkpoint": (checkpoint, "_digest", 3, "before"),
    "before its checksum": (os, "replace", 3, "before"),
    "after a checkpoint": (checkpoint, "save", 3, "after"),
    "after the last checkpoint": (checkpoint, "save", 4, "after"),
}


def kill(monkeypatch, where, name: str, call: int, when: str) -> None:
    real, calls = getattr(where, name), count(1)

    def function(*args, **options):
        last = next(calls) == call
        if last and when == "before":
            raise Killed
        result = real(*args, **options)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(where, name, function)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> runs.Run:
    torch.manual_seed(0)
    return fit(flow(dropout=0.3), REAL, out=tmp_path_factory.mktemp("whole") / "run", settings=settings())


@pytest.mark.parametrize("crash", CRASHES)
def test_killed_and_resumed_ends_with_the_same_run(crash, uninterrupted, tmp_path, monkeypatch) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill(patch, *CRASHES[crash])
        torch.manual_seed(0)
        with pytest.raises(Killed):
            fit(flow(dropout=0.3), REAL, out=path, settings=settings())
    torch.manual_seed(0)
    resumed = fit(flow(dropout=0.3), REAL, out=path, resume=True, settings=settings())
    assert same(weights(resumed.density), weights(uninterrupted.density))
    assert numbers(resumed.history) == numbers(uninterrupted.history)
    loaded, whole = (loglik.load(run.path, density=flow(dropout=0.3)) for run in (resumed, uninterrupted))
    assert same(weights(loaded.density), weights(whole.density))
    assert numbers(loaded.history) == numbers(whole.history)
    assert loaded.steps == 24
    newest = [checkpoint.load_newest(run.path / "checkpoints") for run in (resumed, uninterrupted)]
    assert same(newest[0][0], newest[1][0])  # the trainer's weights, averages and moments too
    assert sorted(p.name for p in (path / "checkpoints").iterdir() if p.suffix != ".partial") == [
        "step-000000018.safetensors",
        "step-000000018.sha256",
        "step-000000024.safetensors",
        "step-000000024.sha256",
    ]


def test_a_family_by_name_is_resumed(tmp_path, monkeypatch) -> None:
    options = {"width": 8, "settings": settings(max_epochs=4)}
    whole = fit("vae", (REAL, LABELS), out=tmp_path / "whole", conditional=True, **options)
    with monkeypatch.context() as patch:
        kill(patch, loop._Trainer, "_batch", 15, "before")
        with pytest.raises(Killed):
            fit("vae", (REAL, LABELS), out=tmp_path / "run", conditional=True, **options)
    with pytest.raises(ValueError, match="begun with another options") as error:
        fit("vae", (REAL, LABELS), out=tmp_path / "run", resume=True, **options)
    assert "\n" not in str(error.value)
    resumed = fit("vae", (REAL, LABELS), out=tmp_path / "run", resume=True, conditional=True, **options)
    assert whole.steps == resumed.steps == 20
    assert same(weights(resumed.density), weights(whole.density))


@pytest.mark.parametrize("damage", ["truncated", "changed", "wrong checksum", "no checksum"])
def test_a_damaged_checkpoint_is_passed_over(damage, uninterrupted, tmp_path, monkeypatch) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill(patch, loop._Trainer, "_batch", 20, "before")
        torch.manual_seed(0)
        with pytest.raises(Killed):
            fit(flow(dropout=0.3), REAL, out=path, settings=settings())
    newest = path / "checkpoints" / "step-000000018.safetensors"
    content = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "wrong checksum":
        newest.with_suffix(".sha256").write_text("0" * 64)
    else:
        newest.with_suffix(".sha256").unlink()
    state = checkpoint.load_newest(path / "checkpoints")
    assert state is not None and state[1]["step"] == 12
    resumed = fit(flow(dropout=0.3), REAL, out=path, resume=True, settings=settings())
    assert same(weights(resumed.density), weights(uninterrupted.density))
    assert numbers(resumed.history) == numbers(uninterrupted.history)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 5e-3}, "begun with learning_rate=0.001, now learning_rate=0.005"),
        ({"batch_size": 16}, "begun with batch_size=32, now batch_size=16"),
        ({"seed": 1}, "begun with seed=0, now seed=1"),
        ({"validate_every": 5}, "begun with validate_every=6, now validate_every=5"),
    ],
)
def test_resuming_with_other_settings_is_refused(changes, words, uninterrupted) -> None:
    before = weights(loglik.load(uninterrupted.path, density=flow()).density)
    with pytest.raises(ValueError, match=words) as error:
        fit(flow(), REAL, out=uninterrupted.path, resume=True, settings=settings(**changes))
    assert "\n" not in str(error.value)
    assert same(before, weights(loglik.load(uninterrupted.path, density=flow()).density))


def test_resuming_needs_a_run_and_the_same_kind_of_data(uninterrupted, tmp_path) -> None:
    with pytest.raises(ValueError, match="nothing to resume: without out, there is no run"):
        fit(flow(), REAL, resume=True)
    with pytest.raises(ValueError, match=r"nothing to resume: .*empty is no run"):
        fit(flow(), REAL, resume=True, out=tmp_path / "empty")
    with pytest.raises(ValueError, match="begun with another spec"):
        fit(flow(), (REAL, LABELS), out=uninterrupted.path, resume=True, settings=settings())
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        fit(flow(), REAL, out=uninterrupted.path, settings=settings())


def test_a_finished_run_goes_on_with_a_higher_limit(tmp_path) -> None:
    density = flow()
    fit(density, REAL, out=tmp_path / "run", settings=settings(max_steps=6))
    more = fit(density, REAL, out=tmp_path / "run", resume=True, settings=settings(max_steps=12))
    assert [row["step"] for row in more.history] == [6, 12]
    again = fit(density, REAL, out=tmp_path / "run", resume=True, settings=settings(max_steps=12))
    assert again.history == more.history
    assert again.steps == 12


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


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_what_is_kept_is_the_moving_average(decay, monkeypatch) -> None:
    seen: list[float] = []
    due = loop._Trainer._due
    monkeypatch.setattr(
        loop._Trainer, "_due", lambda self: seen.append(self.density.weight.item()) or due(self)
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


def test_time_is_a_limit(monkeypatch) -> None:
    clock = count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 0.25 * next(clock)))
    run = fit(Drift(), REAL, max_time="10s", patience=0, batch_size=32)
    assert run.train_seconds >= 10
    assert 10 <= run.steps <= 40  # a step reads the clock once, a validation a few times more
    assert run.history[-1]["step"] == run.steps
    assert 3 <= len(run.history) <= loop.VALIDATIONS + 1
    assert [row["time"] for row in run.history] == sorted({row["time"] for row in run.history})
    assert fit(Drift(), REAL, max_time=10, max_steps=3).steps == 3


def test_a_batch_is_at_most_the_data() -> None:
    run = fit(flow(), REAL[:20], max_steps=3, batch_size=1000)
    assert run.steps == 3
    assert fit(flow(), REAL[:20], max_epochs=2, batch_size=1000).steps == 2
    assert fit(flow(), REAL[:20], max_epochs=2, batch_size=5).steps == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 0}, "max_steps must be above 0, got 0"),
        ({"max_time": "soon"}, "'soon' is not a time: write 45s, 5m or 1h"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
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
        (flow, {"x": REAL}, r"data must be a path, a name, an array, a pair \(x, y\) or Data, got dict"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(density, data, words, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        fit(density(), data, out=tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run").exists()


RANKS = """
    import os, sys
    from types import SimpleNamespace
    import torch
    from lightning_fabric import Fabric
    import loglik
    from loglik.data import from_arrays
    from loglik.evaluation import log_probs
    from loglik.flows import Coupling, Spline
    from loglik.flows.spline import parameters_per_dim
    from loglik.networks import MLP
    from loglik.training import fit, loop

    ranks, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)

    def flow():
        torch.manual_seed(0)
        return loglik.Flow([Coupling([False, True], MLP(1, parameters_per_dim(4)), Spline(4, 4.0))],
                           loglik.StandardNormal((2,)))

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1 * x[:, 1] + x[:, 0]
    where = {"accelerator": "cpu", "devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
    run = fit(flow(), x, out=folder + "/run", max_steps=12, validate_every=5, batch_size=32, **where)
    rank = int(os.environ.get("LOCAL_RANK", "0"))

    now = iter(range(100_000))  # on the second rank time goes faster and validations seem slower
    loop.time = SimpleNamespace(perf_counter=lambda: next(now) * (0.05 + 0.2 * rank))
    timed = fit(flow(), x, max_time=10, batch_size=32, patience=0, **where)

    fabric = Fabric(**where)
    fabric.launch()
    vae = loglik.fit("vae", torch.round(x.abs()).to(torch.int64), max_steps=2, width=8)  # each rank alone
    held = from_arrays(torch.round(x.abs()).to(torch.int64))
    scores = log_probs(vae.density, held.split("all"), samples=3, seed=1, batch_size=16, fabric=fabric)
    torch.save({"weights": run.density.state_dict(), "nats": [r["validation_nats"] for r in run.history],
                "scores": scores, "timed": timed.steps, "world": fabric.world_size}, f"{folder}/{rank}.pt")
"""


def ranks(number: int, folder: Path) -> list[dict]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(textwrap.dedent(RANKS))
    alone = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK")}
    command = [sys.executable, "-W", "ignore", str(script), str(number), str(folder)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


def test_two_ranks_are_as_good_as_one(tmp_path) -> None:
    (one,), (first, second) = ranks(1, tmp_path / "one"), ranks(2, tmp_path / "two")
    assert (one["world"], first["world"], second["world"]) == (1, 2, 2)
    assert same(first["weights"], second["weights"])
    for name, value in one["weights"].items():  # the mean of two half batches' gradients is the batch's
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
    assert first["nats"] == second["nats"]
    assert first["nats"] == pytest.approx(one["nats"], abs=1e-4)
    assert torch.equal(first["scores"], second["scores"])
    torch.testing.assert_close(first["scores"], one["scores"], rtol=0, atol=1e-6)
    assert first["timed"] == second["timed"] > 5
    assert (tmp_path / "two" / "run" / "model.safetensors").is_file()


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
    def backward(ctx, to_y):
        pair, part = ctx.saved_tensors
        scaled = part * to_y
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
