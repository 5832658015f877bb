"""Recipes on a GPU: batch, learning rate, size and precision from its description; a CPU keeps the recipe's own."""

import importlib

import pytest
import torch
import yaml

import loglik
from loglik.devices import DeviceInfo, describe_device
from loglik.recipes import RECIPES, recipe
from loglik.recipes.device import precision_for, size_for, training_for
from loglik.training import defaults, fabric

CPU = DeviceInfo("cpu")
FAST = DeviceInfo("cuda", memory=80 * 2**30, flops=650e12)
SLOW = DeviceInfo("cuda", memory=12 * 2**30, flops=25e12)
CLOTHES = loglik.DataSpec(kind="image", event_shape=(1, 28, 28), levels=256, classes=("a", "b"))
DIGITS = loglik.DataSpec(kind="image", event_shape=(1, 8, 8), levels=17, classes=("a", "b"))
TABLE = loglik.DataSpec(kind="table", event_shape=(10,), classes=("a", "b"))
TEXT = loglik.DataSpec(kind="text", event_shape=(256,), levels=65, classes=("a", "b"))


def suited(name, spec, device, examples):
    found = recipe(name)
    settings = precision_for(found.family, spec, found.training(spec), on_gpu=device.kind == "cuda")
    return training_for(found.family, spec, settings, device, examples=examples)


@pytest.mark.parametrize("name", [*RECIPES, "flow:glow", "diffusion:mlp"])
@pytest.mark.parametrize("spec", [CLOTHES, DIGITS, TABLE, TEXT], ids=lambda spec: spec.kind)
def test_a_cpu_keeps_the_recipes_settings(name, spec):
    if spec is TEXT and name not in ("autoregressive", "classifier"):
        return
    assert suited(name, spec, CPU, 10**6) == recipe(name).training(spec)
    assert size_for(recipe(name).family, spec, CPU, units=10**9, max_time=3600, max_steps=None) == "small"


@pytest.mark.parametrize(
    ("name", "spec", "examples", "batch", "rate"),
    [
        ("diffusion", CLOTHES, 54_000, 256, 1e-2),  # twice the CPU's, the most that eight times the batch may add
        ("vae", CLOTHES, 54_000, 1024, 1.4e-2),
        ("classifier", CLOTHES, 54_000, 1024, 4e-2),
        ("flow", CLOTHES, 54_000, 512, 1.2e-2),  # glow
        ("flow", TABLE, 10**6, 4096, 1e-2),
        ("autoregressive", TEXT, 10**6, 256, 2e-2),  # 64k tokens
        ("autoregressive", CLOTHES, 54_000, 80, 8e-3),  # as many positions
        ("diffusion:mlp", DIGITS, 10**5, 2048, 2e-3),
    ],
)
def test_a_fast_gpu_gets_the_batch_that_keeps_it_busy(name, spec, examples, batch, rate):
    found = suited(name, spec, FAST, examples)
    assert (found["batch_size"], found["learning_rate"]) == (batch, pytest.approx(rate))
    least = recipe(name).training(spec)
    slow = suited(name, spec, SLOW, examples)
    assert least["batch_size"] <= slow["batch_size"] < batch and slow["learning_rate"] < rate


def test_the_learning_rate_grows_with_the_square_root_of_the_batch():
    found, own = suited("diffusion", CLOTHES, FAST, 2**11), recipe("diffusion").training(CLOTHES)
    assert found["batch_size"] == 2 * own["batch_size"]
    assert found["learning_rate"] == pytest.approx(2**0.5 * own["learning_rate"])


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "independent"])
@pytest.mark.parametrize("examples", [5, 150, 1500, 12_345])
def test_an_epoch_keeps_twenty_steps_unless_the_recipe_has_fewer(name, examples):
    own, found = recipe(name).training(DIGITS)["batch_size"], suited(name, DIGITS, FAST, examples)["batch_size"]
    assert found == own or examples // found >= 20


@pytest.mark.parametrize("rate", [250e12, 380e12, 400e12, 600e12, 700e12])
def test_settings_do_not_depend_on_how_a_rate_was_measured(rate):
    found = [
        suited("vae", CLOTHES, DeviceInfo("cuda", memory=80 * 2**30, flops=factor * rate), 54_000)
        for factor in (0.9, 1, 1.1)
    ]
    assert found[0] == found[1] == found[2]


def test_transformers_multiply_in_bfloat16_and_flows_do_not():
    assert suited("autoregressive", TABLE, FAST, 10**4)["precision"] == "auto"
    assert suited("classifier", TEXT, FAST, 10**4)["precision"] == "auto"
    assert "precision" not in suited("flow", CLOTHES, FAST, 10**4)


@pytest.mark.parametrize(
    ("family", "spec", "device", "units", "limit", "size"),
    [
        ("diffusion", CLOTHES, FAST, 54_000, {"max_time": 60.0}, "medium"),
        ("diffusion", CLOTHES, FAST, 54_000, {"max_time": 40.0}, "small"),
        ("diffusion", CLOTHES, SLOW, 54_000, {"max_time": 600.0}, "small"),
        ("diffusion", DIGITS, FAST, 1_500, {"max_time": 60.0}, "small"),
        ("autoregressive", TEXT, FAST, 2**21, {"max_steps": 5000}, "medium"),
        ("autoregressive", TEXT, FAST, 2**21, {"max_steps": 2000}, "small"),
        ("vae", TABLE, FAST, 10**6, {"max_time": 600.0}, "small"),
        ("flow", CLOTHES, FAST, 54_000, {"max_time": 600.0}, "small"),
    ],
)
def test_the_size_suits_the_gpu_the_data_and_the_limit(family, spec, device, units, limit, size):
    limits = {"max_time": None, "max_steps": None, **limit}
    assert size_for(family, spec, device, units=units, **limits) == size


def test_nothing_is_measured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", None)
    assert describe_device(torch.device("cpu")) == CPU and describe_device(torch.device("meta")) == DeviceInfo("meta")


# ---- fit


@pytest.fixture
def fast_gpu(monkeypatch):
    """The CPU, described as a fast GPU."""
    monkeypatch.setattr(defaults, "describe_device", lambda device: FAST)
    monkeypatch.setattr(defaults, "on_gpu", lambda settings: True)


ROWS = torch.randn(60_000, 3, generator=torch.Generator().manual_seed(0)).numpy()
TINY = {"width": 8, "depth": 1, "progress": False}


def begin(out, **options):
    run = loglik.fit("flow", ROWS, out=out, **{**TINY, "max_steps": 1, **options})
    return yaml.safe_load((run.path / "config.yaml").read_text())


def test_a_run_records_what_suited_the_device(fast_gpu, tmp_path):
    config = begin(tmp_path / "run")
    assert config["training"]["batch_size"] == 2048 and config["training"]["learning_rate"] == 1e-2
    assert config["options"] == {"width": 8, "depth": 1}


def test_what_is_set_stays(fast_gpu, tmp_path):
    config = begin(tmp_path / "run", batch_size=64, learning_rate=1e-3, size="medium")
    assert config["training"]["batch_size"] == 64 and config["training"]["learning_rate"] == 1e-3
    assert config["options"]["size"] == "medium"


def test_a_run_is_resumed_elsewhere_with_what_it_began_with(tmp_path, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr(defaults, "describe_device", lambda device: FAST)
        there.setattr(defaults, "size_for", lambda *args, **limits: "medium")
        before = begin(tmp_path / "run")
    monkeypatch.setattr(defaults, "describe_device", None)
    after = begin(tmp_path / "run", max_steps=2, resume=True)
    assert after["steps"] == 2 and after["options"] == before["options"] and before["options"]["size"] == "medium"
    assert after["training"] == {**before["training"], "max_steps": 2}
    assert loglik.load(tmp_path / "run").density.event_shape == (3,)


def test_the_precision_that_auto_chose_is_recorded_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "auto_precision", lambda settings: "bf16-mixed")
    config = begin(tmp_path / "run", precision="auto")
    assert config["training"]["precision"] == "auto" and config["chosen"]["precision"] == "bf16-mixed"
    monkeypatch.setattr(defaults, "auto_precision", lambda settings: "32-true")
    precisions = []
    launch = fabric.launch_fabric
    monkeypatch.setattr(
        importlib.import_module("loglik.training.fit"),
        "launch_fabric",
        lambda settings: precisions.append(settings.precision) or launch(settings),
    )
    begin(tmp_path / "run", precision="auto", max_steps=2, resume=True)
    assert precisions == ["bf16-mixed"]
