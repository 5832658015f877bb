"""Every recipe through the shared density suite, and what recipes themselves promise."""

from pathlib import Path

import pytest
import torch

from helpers import densities
from helpers.alone import run_alone
from helpers.densities import (
    CASES,
    CHECKED,
    REFUSED,
    SPECS,
    TWO_PIXELS,
    Case,
    check_draws_what_it_scores,
    check_sums_to_one,
    events_of,
    tiny,
    train,
)
from helpers.needs import needs
from loglik.data.spec import DataSpec
from loglik.recipes import RECIPES, Unsuitable, build, recipe

HERE = Path(__file__).parent
TWO_PIXEL_CASES = [
    (family, conditional)
    for family in RECIPES
    if family != "mixture"  # of tables alone
    for conditional in ([False, True] if "conditional" in recipe(family).options else [False])
]


@pytest.mark.parametrize(("case", "check"), CHECKED)
def test_density(case, check):
    check(case)


@needs("a GPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_density_on_gpu(case):
    densities.check_gpu(case)


@pytest.mark.parametrize(("family", "conditional"), TWO_PIXEL_CASES)
def test_sums_to_one(family, conditional):
    """A density that has learnt a little, over the nine events of two pixels with three levels."""
    torch.manual_seed(1)
    x, y = densities.draw(TWO_PIXELS, 256)
    density = tiny(family, TWO_PIXELS, **({"conditional": True} if conditional else {}))
    train(density, *((y, x) if density.event == "y" else (x, y if conditional else None)))
    if density.event == "y":
        events = torch.arange(len(TWO_PIXELS.classes))
        for given in events_of(TWO_PIXELS):
            context = given.expand(len(events), *given.shape)
            check_draws_what_it_scores(density, events, check_sums_to_one(density, events, context), context)
        return
    events = events_of(TWO_PIXELS)
    context = torch.full((len(events),), 1) if conditional else None
    p = check_sums_to_one(density, events, context)
    assert p.sum() > 0.5  # the bound is not vacuous
    if density.importance_weighted:
        check_draws_what_it_scores(density, events, p, context)


@pytest.mark.parametrize(("family", "spec"), sorted(REFUSED))
def test_refuses_what_it_cannot_take(family, spec):
    with pytest.raises(Unsuitable) as refusal:
        tiny(family, SPECS[spec])
    message = str(refusal.value)
    assert "\n" not in message and message.startswith(family)
    assert any(f" {other}" in message for other in RECIPES if other != family)  # names one that can
    named = [other for other in RECIPES if other != family and f" {other}" in message]
    assert all((other, spec) not in REFUSED for other in named)


@pytest.mark.parametrize("family", [f for f in RECIPES if "conditional" in recipe(f).options])
def test_conditional_needs_labels(family):
    with pytest.raises(Unsuitable, match="needs labels"):
        build(family, DataSpec(kind="image", event_shape=(1, 2, 2), levels=3), conditional=True)


def test_classifier_needs_labels():
    with pytest.raises(Unsuitable, match="classifier needs labels"):
        build("classifier", DataSpec(kind="image", event_shape=(1, 2, 2), levels=3))


def test_autoregressive_refuses_long_events():
    with pytest.raises(Unsuitable, match="at most 4096 numbers and these have 12288"):
        build("autoregressive", DataSpec(kind="image", event_shape=(3, 64, 64), levels=256))


def test_unknown_names_are_one_line():
    with pytest.raises(ValueError, match=r"unknown model 'glow': use independent, "):
        recipe("glow")
    with pytest.raises(ValueError, match=r"vae has no option 'depht': it has size, "):
        build("vae", SPECS["image"], depht=3)


@pytest.mark.parametrize("family", RECIPES)
def test_sizes(family):
    """Small, medium and large grow; another size is refused with the names of the sizes."""
    spec = SPECS["table" if family == "mixture" else "image"]
    counts = [sum(p.numel() for p in build(family, spec, size=s).parameters()) for s in ("small", "medium", "large")]
    assert counts == sorted(counts)
    if counts[0]:
        assert len(set(counts)) == 3
        with pytest.raises(ValueError, match="unknown size 'huge': use small, medium, large"):
            build(family, spec, size="huge")


def test_a_warm_up_can_be_turned_off():
    spec = DataSpec(kind="array", event_shape=(3,))
    assert not build("vae", spec, kl_warmup=0).warming_up
    assert build("vae", spec, kl_warmup=5).warming_up


def test_recipes_tell_their_options():
    assert recipe("flow").options["conditional"].default is False
    for name, entry in RECIPES.items():
        assert entry.name == name and entry.summary and "size" in entry.options


# ---- compilation


def compiled(backend: str, family: str, spec: str, *more: str) -> None:
    run_alone(HERE / "helpers" / "densities.py", backend, family, spec, *more)


@pytest.mark.parametrize("family", ["autoregressive", "diffusion"])
def test_log_prob_is_one_graph(family):
    """Without a break that a synchronisation or a data-dependent branch would make."""
    compiled("eager", family, "image256")


@pytest.mark.slow
@needs("a C++ compiler")
@pytest.mark.parametrize("case", [c for c in CASES if not c.conditional and c.spec in ("image", "table")], ids=str)
def test_compiled(case: Case):
    compiled("inductor", case.family, case.spec, "loss")


def test_long_events_come_in_smaller_batches():
    training = recipe("autoregressive").training
    assert training(DataSpec(kind="image", event_shape=(1, 8, 8), levels=17))["batch_size"] == 32
    assert training(DataSpec(kind="image", event_shape=(3, 32, 32), levels=256))["batch_size"] == 2


IMAGES = {
    "digits": DataSpec(kind="image", event_shape=(1, 8, 8), levels=17, classes=("a", "b", "c")),
    "clothes": DataSpec(kind="image", event_shape=(1, 28, 28), levels=256, classes=("a", "b", "c")),
    "photographs": DataSpec(kind="image", event_shape=(3, 96, 96), levels=256, classes=("a", "b", "c")),
}


@pytest.mark.parametrize("network", ["auto", "mlp", "convnet", "resnet", "vit"])
@pytest.mark.parametrize("spec", IMAGES.values(), ids=IMAGES)
def test_every_network_classifies_every_size_of_image(network, spec):
    model = build("classifier", spec, network=network)
    x = torch.randint(spec.levels, (4, *spec.event_shape), dtype=torch.uint8)
    y = torch.tensor([0, 1, 2, 0])
    model.train().loss(y, x).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval().probabilities(x).shape == (4, 3)
    assert (model.augment is not None) == (network not in ("mlp", "auto") or (network == "auto" and spec.dims > 64))
    assert model.mirror == (model.augment is not None and min(spec.event_shape[-2:]) > 16)


def test_convolutions_are_for_images():
    table = DataSpec(kind="array", event_shape=(5,), classes=("a", "b"))
    with pytest.raises(ValueError, match="network=resnet classifies images"):
        build("classifier", table, network="resnet")
    with pytest.raises(ValueError, match="unknown network 'gru'"):
        build("classifier", table, network="gru")
    assert recipe("classifier").training(IMAGES["clothes"])["optimizer"] == "muon"
    assert "optimizer" not in recipe("classifier").training(table)
