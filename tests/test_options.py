"""Options: each one changes the model that is built, trained, saved and loaded; a wrong value is one clear line."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

import loglik
from loglik.classification.augment import Augment
from loglik.cli.reference import describe, markdown, overview
from loglik.diffusion import (
    VLB,
    Cosine,
    Denoiser,
    Diffusion,
    Learned,
    LevelDenoiser,
    LinearLogSNR,
    PixelDenoiser,
)
from loglik.diffusion.sampler import METHODS
from loglik.diffusion.score_matching import WEIGHTINGS
from loglik.flows import Coupling, GaussianMixture, StandardLogistic
from loglik.networks import MLP, DiT, ViT
from loglik.recipes import RECIPES, DiffusionOptions, build, check_types, option, recipe

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
DATA = {
    "small images": (RNG.integers(0, 17, (60, 1, 8, 8)).astype(np.uint8), LABELS),
    "images": (RNG.integers(0, 256, (60, 1, 16, 16)).astype(np.uint8), LABELS),
    "array": (RNG.normal(size=(60, 3)), LABELS),
}


def of(density: nn.Module, kind: type) -> list:
    return [module for module in density.modules() if isinstance(module, kind)]


def the(density: nn.Module, kind: type):
    (found,) = of(density, kind)
    return found


def spec_of(name: str):
    return loglik.data.as_data(DATA[name]).spec


CLASSIFIER = {  # data, options, and what must be true of the density
    "depth of an mlp": ("array", {"depth": 4}, lambda d: len(of(d.features, nn.SiLU)) == 4),
    "relu": ("array", {"activation": "relu"}, lambda d: not of(d, nn.SiLU) and len(of(d, nn.ReLU)) == 4),
    "tanh": ("array", {"activation": "tanh"}, lambda d: len(of(d, nn.Tanh)) == 4),
    "layer norm": ("array", {"norm": "layer"}, lambda d: len(of(d, nn.LayerNorm)) == 3),
    "batch norm": ("small images", {"norm": "batch"}, lambda d: len(of(d, nn.BatchNorm1d)) == 3),
    "no norm": ("images", {"norm": "none"}, lambda d: d.features.norm == "none" and not of(d, nn.BatchNorm2d)),
    "blocks": ("small images", {"network": "convnet", "depth": 2}, lambda d: len(d.features.stages[0]) == 2),
    "patch": ("small images", {"network": "vit", "patch": 2}, lambda d: d.features.patches.stride == (2, 2)),
    "hybrid": ("small images", {"network": "vit", "stem": "convolution"}, lambda d: d.features.maps == (4, 4)),
    "no stem": ("images", {"network": "vit", "stem": "none"}, lambda d: len(d.features.stem) == 0),
    "sinusoids": (
        "small images",
        {"network": "vit", "positions": "sinusoidal"},
        lambda d: "positions" in dict(d.features.named_buffers()),
    ),
    "no positions": ("images", {"network": "vit", "positions": "none"}, lambda d: d.features.positions is None),
    "depth of a vit": ("small images", {"network": "vit", "depth": 1}, lambda d: len(d.features.encoder.blocks) == 1),
    "shift": ("small images", {"augment": "shift"}, lambda d: changes(d) == ["RandomCrop"]),
    "flip": (
        "images",
        {"network": "mlp", "augment": "flip"},
        lambda d: changes(d) == ["RandomHorizontalFlip"] and d.mirror,
    ),
    "erase": ("small images", {"augment": "erase"}, lambda d: changes(d) == ["RandomErasing"]),
    "all": ("small images", {"augment": "all"}, lambda d: len(changes(d)) == 3),
    "none": ("images", {"augment": "none"}, lambda d: d.augment is None),
    "false": ("images", {"augment": False}, lambda d: d.augment is None),
}
OTHERS = {  # the model too
    "logistic base": ("flow", "array", {"base": "logistic"}, lambda d: isinstance(d.base, StandardLogistic)),
    "mixture base": ("flow", "array", {"base": "mixture"}, lambda d: isinstance(d.base, GaussianMixture)),
    "glow's base": ("flow:glow", "small images", {"base": "mixture"}, lambda d: isinstance(d.base, GaussianMixture)),
    "transforms": ("flow:nsf", "array", {"depth": 3}, lambda d: len(of(d, Coupling)) == 3),
    "mlps of a vae": (
        "vae",
        "array",
        {"depth": 3, "activation": "relu", "norm": "layer"},
        lambda d: len(of(d, nn.ReLU)) == len(of(d, nn.LayerNorm)) == 6,
    ),
    "ladder": ("vae", "small images", {"depth": 2}, lambda d: d.decoder.groups == [2]),
    "patch of a dit": ("diffusion:dit", "images", {"patch": 4}, lambda d: the(d, DiT).patch == 4),
}
DIFFUSION = {
    "cosine": ("array", {"schedule": "cosine"}, lambda d: type(d.schedule) is Cosine),
    "log-SNR": ("small images", {"schedule": "linear-logsnr"}, lambda d: type(d.schedule) is LinearLogSNR),
    "learned": ("array", {"schedule": "learned"}, lambda d: type(d.schedule) is Learned),
    "learned of images": ("images", {"schedule": "learned", "steps": 3}, lambda d: d.objective.times == "uniform"),
    "betas": (
        "array",
        {"beta_min": 0.2, "beta_max": 10},
        lambda d: (d.schedule.beta_min, d.schedule.beta_max) == (0.2, 10.0),
    ),
    "chain": ("small images", {"T": 50}, lambda d: chain(d) == (50, 50, 50, "ddpm", "time")),
    "chain of images": ("images", {"T": 20, "steps": 5}, lambda d: chain(d) == (20, 20, 5, "ddpm", "time")),
    "ddpm": (
        "array",
        {"T": 10, "weighting": "simple", "prediction": "noise"},
        lambda d: chain(d)[:2] == (10, 10) and d.objective.weighting == "simple",
    ),
}
for kind in ("noise", "data", "v", "score"):
    for source in ("array", "small images"):
        DIFFUSION[f"{kind} of {source}"] = (
            source,
            {"prediction": kind},
            lambda d, kind=kind: type(d.denoiser) is Denoiser and d.denoiser.prediction == kind,
        )

CASES = {
    **{f"classifier, {name}": ("classifier", *case) for name, case in CLASSIFIER.items()},
    **OTHERS,
    **{
        f"diffusion, {name}": ("diffusion", data, options, lambda d, holds=holds: holds(the(d, Diffusion)))
        for name, (data, options, holds) in DIFFUSION.items()
    },
}


def changes(density: nn.Module) -> list[str]:
    return [type(step).__name__ for step in the(density, Augment).steps]


def chain(diffusion: Diffusion) -> tuple:
    assert isinstance(diffusion.likelihood, VLB)
    sampler = diffusion.sampler
    return diffusion.objective.steps, diffusion.likelihood.steps, sampler.steps, sampler.method, sampler.spacing


@pytest.mark.parametrize("case", CASES)
def test_an_option_reaches_the_model_that_is_trained_saved_and_loaded(case, tmp_path):
    model, data, options, holds = CASES[case]
    width = 32 if options.get("network") == "vit" else 16 if model.startswith("diffusion") else 8
    options = {"width": width, **({"depth": 1} if model.startswith(("diffusion", "flow:glow")) else {}), **options}
    settings = {"max_steps": 2, "batch_size": 16, "progress": False}
    run = loglik.fit(model, DATA[data], out=tmp_path / "run", **settings, **options)
    loaded = loglik.load(tmp_path / "run")
    assert loaded.config["options"] == options
    assert holds(run.density) and holds(loaded.density)
    state, same = run.density.state_dict(), loaded.density.state_dict()
    assert state.keys() == same.keys() and all(torch.equal(state[key], same[key]) for key in state)
    result = loglik.evaluate(loaded, DATA[data])
    assert np.isfinite(result.nats)
    if result.event == "x":
        assert loaded.density.sample(2).shape == (2, *loaded.spec.event_shape)


def test_without_options_the_models_are_as_before():
    images = build("diffusion", spec_of("images"))
    assert type(images.denoiser) is PixelDenoiser and images.objective.times == "importance"
    assert images.objective.steps is None and images.sampler.until == 4.0
    small = build("diffusion", spec_of("small images"))
    assert type(small.denoiser) is LevelDenoiser and small.sampler.steps == 200
    classifier = build("classifier", spec_of("small images"))
    assert classifier.augment is None and len(of(classifier, MLP)) == 2 and not of(classifier, nn.LayerNorm)
    vit = build("classifier", spec_of("small images"), network="vit")
    assert len(the(vit, ViT).stem) == 0 and vit.features.positions.requires_grad
    assert len(the(build("classifier", spec_of("images"), network="vit"), ViT).stem) == 3


WRONG = [
    ("classifier", "array", {"activation": "sine"}, "unknown activation 'sine': use silu, relu, gelu, tanh"),
    ("classifier", "images", {"activation": "relu"}, "activation=relu has no effect with network=resnet: leave "),
    ("classifier", "images", {"norm": "layer"}, "norm=layer is for network=mlp, and the network is resnet: use norm="),
    ("classifier", "images", {"patch": 2}, "patch=2 has no effect with network=resnet: leave patch out, or use netwo"),
    ("classifier", "small images", {"network": "vit", "patch": 3}, "patches of 3 do not tile maps of 8×8"),
    ("classifier", "small images", {"network": "vit", "stem": "pool"}, "unknown stem 'pool': use none, convolution"),
    (
        "classifier",
        "small images",
        {"positions": "rotary"},
        "unknown positions 'rotary': use learned, sinusoidal, no",
    ),
    ("classifier", "small images", {"augment": "mixup"}, "unknown augment 'mixup': use true, false, none, shift, flip"),
    ("classifier", "array", {"augment": "shift"}, "augment=shift is for images, and these are array"),
    ("classifier", "array", {"smoothing": 1.0}, "smoothing must be a number of at least 0 and below 1, got 1.0"),
    ("flow", "array", {"base": "cauchy"}, "unknown base 'cauchy': use normal, logistic, mixture"),
    ("flow", "array", {"jitter": float("nan")}, "jitter must be a number of at least 0, got nan"),
    ("vae", "small images", {"norm": "batch"}, "norm=batch has no effect with network=ladder: leave norm out"),
    ("diffusion", "array", {"schedule": "square"}, "unknown schedule 'square': use linear, cosine, linear-logsnr, fl"),
    ("diffusion", "array", {"schedule": "cosine", "beta_max": 9.0}, "beta_max=9.0 has no effect with schedule=cosine"),
    ("diffusion", "array", {"beta_min": 0}, "beta_min must be a number above 0, got 0"),
    ("diffusion", "array", {"beta_min": 30.0}, "β must not fall and start above 0, got 30.0 to 20.0"),
    ("diffusion", "array", {"T": 1}, "T must be an integer of at least 2, got 1"),
    ("diffusion", "array", {"T": 9, "schedule": "learned"}, "schedule=learned minimises the variance of the continu"),
    ("diffusion", "array", {"prediction": "flow"}, "unknown prediction 'flow': use auto, noise, data, v, score"),
    ("diffusion", "array", {"patch": 2}, "patch=2 has no effect with kind=mlp: leave patch out, or use kind=dit"),
    (
        "diffusion",
        "array",
        {"weighting": torch.sqrt},
        "got a function, which config.yaml cannot hold: build ",
    ),
]


@pytest.mark.parametrize(("model", "data", "options", "said"), WRONG, ids=[" ".join(w[2]) for w in WRONG])
def test_a_wrong_value_is_one_clear_line(model, data, options, said):
    with pytest.raises(ValueError) as error:
        build(model, spec_of(data), **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_codes_have_no_other_prediction():
    columns = (
        loglik.data.Column(name="a", type="numeric"),
        loglik.data.Column(name="b", type="categorical", categories=("x", "y")),
    )
    spec = loglik.data.DataSpec(kind="table", event_shape=(2,), columns=columns)
    with pytest.raises(ValueError, match="prediction=noise is for images and real numbers, and these are table"):
        build("diffusion", spec, prediction="noise")


# ---- how options are declared


def test_the_values_are_those_of_what_they_set():
    hints = get_type_hints(DiffusionOptions)
    assert set(get_args(hints["method"])) == {"auto", *METHODS}
    assert set(get_args(hints["weighting"])) == set(WEIGHTINGS)


@pytest.mark.parametrize("family", RECIPES)
def test_every_option_is_documented_and_accepts_its_default(family):
    for name, entry in recipe(family).options.items():
        assert entry.help.endswith(".") and entry.values, name
    made = recipe(family).parse({})
    assert made.size == "small" and {f.name for f in fields(made)} == set(recipe(family).options)
    with pytest.raises(AttributeError):
        made.size = "large"


def test_a_variant_presets_its_option():
    assert recipe("flow:glow").options["kind"].default == "glow"
    assert recipe("flow:glow").parse({}).kind == "glow"
    assert recipe("vae:vamp").parse({}).prior == "vamp" and recipe("vae").parse({}).prior == "normal"


@dataclass(frozen=True, kw_only=True)
class Sample:
    count: int | None = option(None, help="Count.", min=2)
    share: float = option(0.5, help="Share.", above=0, below=1)
    name: str = option("a", help="Name.")
    kind: bool | Literal["x", "y"] = option("x", help="Kind.")

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 1}, "count must be an integer of at least 2, got 1"),
        ({"count": True}, "count must be an integer of at least 2, got True"),
        ({"count": 2.0}, "count must be an integer of at least 2, got 2.0"),
        ({"share": 0}, "share must be a number above 0 and below 1, got 0"),
        ({"share": None}, "share must be a number above 0 and below 1, got None"),
        ({"share": float("nan")}, "share must be a number above 0 and below 1, got nan"),
        ({"name": 3}, "name must be a text, got 3"),
        ({"kind": "z"}, "unknown kind 'z': use true, false, x, y"),
        ({"kind": 1}, "unknown kind 1: use true, false, x, y"),
        ({"kind": ["x"]}, "unknown kind ['x']: use true, false, x, y"),
    ],
)
def test_types_choices_and_bounds_are_checked(values, said):
    with pytest.raises(ValueError) as error:
        Sample(**values)
    assert str(error.value) == said


def test_right_values_are_accepted():
    for values in ({"count": None}, {"count": 2}, {"share": 0.5}, {"kind": False}, {"kind": "y"}):
        assert all(getattr(Sample(**values), name) == value for name, value in values.items())


# ---- the reference


def test_the_page_of_options_is_up_to_date():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m loglik.cli.reference > docs/options.md"
    assert page.count("\n## ") == len(RECIPES)


def test_a_description_has_every_option_and_an_overview_every_model():
    for family, entry in RECIPES.items():
        assert family in overview()
        assert all(f"\n{name}=" in describe(family) for name in entry.options)
