"""Every command and every density on a device that is not the CPU, where mixing the two is an error."""

from dataclasses import replace

import pytest
import torch
import yaml

import loglik
from helpers.commands import refused, well
from helpers.densities import CASES, SPECS, check_elsewhere, draw, tiny
from helpers.elsewhere import DEVICE, Elsewhere, second_device, there
from helpers.mixed import mixed_rows, write_rows
from loglik import devices
from loglik.comparison import evaluate_run
from loglik.data import load
from loglik.data.dataset import Split, TextSplit
from loglik.data.windows import Stream, Windows
from loglik.evaluation import evaluate
from loglik.evaluation.scores import arguments
from loglik.evaluation.split import evaluate_split
from loglik.recipes import RECIPES, build
from loglik.tasks import Latents, diagnose_latents, fill
from loglik.training.settings import with_device
from loglik.verification import minimal_kl, vae_training
from loglik.verification.verify import selected

TINY = {
    "independent": {},
    "vae": {"latent": 2, "width": 8},
    "diffusion": {"steps": 3, "width": 8},
    "flow": {"depth": 1, "width": 8},
    "autoregressive": {"depth": 1, "heads": 1, "width": 8},
    "classifier": {"width": 8},
}
VARIANTS = [
    case
    for case in CASES
    if (":" in case.family and case.spec != "large image")
    or case.spec in ("mixed table", "texts")
    or (case.spec == "image" and case.needs_context)
]
TRAINING = ("minimal-kl", "without-kl")
SLOW = ("reverse-order", "forward-sde", "closed-kl", "attention-cost", "normalised-recipe", "elbo-gap", "elbo-terms")


def settings(**options):
    """Options as words of the command line."""
    return [word for name, value in options.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, the same with gaps, and a run of each family that was trained by `fit` on the second device."""
    folder, rows = tmp_path_factory.mktemp("devices"), mixed_rows("big")
    gaps = [list(row) for row in rows[:12]]
    for i, row in enumerate(gaps):
        row[i % 3] = ""
    write_rows(folder / "whole.csv", rows)
    write_rows(folder / "gaps.csv", gaps)
    for model, options in TINY.items():
        steps = [] if model == "independent" else ["--max-steps", "2"]
        words = ["--model", model, "--label", "label", "--out", folder / model, *steps, *settings(**options)]
        with second_device():
            well("fit", folder / "whole.csv", *words, "--device", DEVICE)
    return folder


@pytest.fixture
def elsewhere():
    with second_device():
        yield


# ---- names


@pytest.fixture
def two_gpus(monkeypatch):
    found = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(devices, "available_devices", lambda: found)


def test_auto_is_the_gpu_where_there_is_one(two_gpus):
    assert devices.resolve_device("auto") == devices.resolve_device("cuda") == torch.device("cuda", 0)
    assert devices.resolve_device("cuda:1") == torch.device("cuda", 1)
    assert devices.resolve_device("cpu") == torch.device("cpu")


def test_auto_is_the_cpu_without_a_gpu_and_beside_an_apple_gpu(monkeypatch):
    for names in (["cpu"], ["cpu", "mps"]):
        monkeypatch.setattr(devices, "available_devices", lambda names=names: list(map(torch.device, names)))
        assert devices.resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "meta", "", "cuda:-1"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown device .*: use auto, cpu, cuda, cuda:1 .* or mps"):
        devices.resolve_device(name)


def test_a_device_that_is_not_there_is_refused_with_what_is(two_gpus):
    with pytest.raises(ValueError, match="no device 'cuda:7': this machine has cpu, cuda:0, cuda:1"):
        devices.resolve_device("cuda:7")


@pytest.mark.parametrize(
    "words",
    [
        "fit whole.csv --model flow --out new",
        "compare whole.csv --out new",
        "evaluate flow",
        "sample flow",
        "encode vae",
        "fill flow gaps.csv",
        "inspect flow --out new",
        "inspect vae --out new",
        "verify flow --out new",
    ],
)
def test_commands_refuse_a_gpu_that_is_not_there_and_write_nothing(folder, words, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(devices, "available_devices", lambda: [torch.device("cpu")])
    assert "no device 'cuda:1': this machine has cpu" in refused(*words.split(), "--device", "cuda:1")
    assert "unknown device 'gpu'" in refused(*words.split(), "--device", "gpu")
    assert not (folder / "new").exists()


def test_a_device_is_fabrics_accelerator_and_device_number(two_gpus):
    assert with_device("auto", {"seed": 1}) == with_device(None, {"seed": 1}) == {"seed": 1}
    assert with_device("cuda", {"devices": 2}) == {"devices": 2, "accelerator": "cuda"}
    assert with_device("cuda:1", {}) == {"accelerator": "cuda", "devices": "1,"}
    with pytest.raises(ValueError, match="leave out accelerator= and devices="):
        with_device("cuda:1", {"accelerator": "cpu", "devices": 2})


def test_config_has_the_device_only_if_it_was_chosen(tmp_path):
    training = {}
    for device in (None, "auto", "cpu"):
        run = loglik.fit("independent", torch.randn(50, 2).numpy(), out=tmp_path / str(device), device=device)
        training[device] = yaml.safe_load((run.path / "config.yaml").read_text())["training"]
    assert training["auto"] == training[None] and training[None]["accelerator"] == "auto"
    assert training["cpu"] == {**training[None], "accelerator": "cpu"}


def test_a_run_is_resumed_on_the_device_it_began_on(folder):
    words = ["--model", "flow", "--label", "label", "--out", folder / "flow", "--max-steps", "3", "--resume"]
    words = ["fit", folder / "whole.csv", *words, *settings(**TINY["flow"])]
    assert f"cannot train with accelerator={DEVICE}" in refused(*words)  # the run's own, which is not here
    assert f"now accelerator=cpu: pass --device {DEVICE}" in refused(*words, "--device", "cpu")
    with second_device():
        well(*words, "--device", DEVICE)


# ---- commands


def test_the_second_device_refuses_what_a_gpu_refuses():
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    with Elsewhere(), torch.no_grad():
        assert layer.to(DEVICE).weight.device == DEVICE and x.device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            layer(x)
        y = layer(x.to(DEVICE))
        assert there(y) and not there(y.cpu()) and (y + torch.ones(())).device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            x[torch.arange(2, device=DEVICE)]
        with pytest.raises(RuntimeError, match="numpy"):
            y.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, device=DEVICE, generator=torch.Generator())
        assert y[torch.arange(2)].device == DEVICE


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "float": lambda x: float(x.sum()),
    "format": lambda x: f"{x.sum():.2f}",
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "booleans": lambda x: x[x > 0],
    "assignment": lambda x: x.__setitem__(x > 0, x[0, :1].clone()),
    "list": lambda x: x[[0, 1]],
    "index": lambda x: x[torch.arange(2)],
    "copy": lambda x: torch.empty(4, 2).copy_(x),
    "here": lambda x: x + torch.ones(4, 2).to(x.device),
    "numbers": lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
    "multinomial": lambda x: x.abs().multinomial(1),
    "repeats": lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 3, 4]).to(x.device), 0),
    "inverse": lambda x: torch.linalg.inv(x[:2]),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
def test_the_second_device_notices_what_a_gpu_waits_for(read):
    with Elsewhere() as device:
        x = torch.randn(4, 2).to(DEVICE)
        before = len(device.waits)
        read(x)
        assert len(device.waits) > before
        with device.unattended(), pytest.raises(RuntimeError, match="would wait for the host"):
            read(x)


def test_the_second_device_works_alone_on_the_rest():
    with Elsewhere() as device:
        x, index = torch.randn(4, 2).to(DEVICE), torch.arange(2).to(DEVICE)
        with device.unattended():
            y = x[index] + 2 * torch.rand(2, 2, device=DEVICE) + x.new_ones(())
            y[y > 1] = 0.5
            y = torch.where(y > 0, y, 0.0).to(torch.float64).to(DEVICE).repeat_interleave(3, 0)
            assert y.shape == (6, 2) and there(y) and len(y) == 6


@pytest.mark.parametrize("model", TINY)
def test_commands_run_there(folder, tmp_path, monkeypatch, model):
    on = ["--device", DEVICE]
    monkeypatch.setattr("loglik.inspection.measure.sequence_cost", lambda seed: None)  # on the CPU, for seconds
    here = evaluate(loglik.load(folder / model), samples=2)
    with second_device():
        loaded = loglik.load(folder / model, device=str(DEVICE))
        assert loaded.density.device == DEVICE
        assert evaluate(loaded, samples=2).nats == pytest.approx(here.nats, abs=1e-3)
        well("evaluate", folder / model, "--per-row", tmp_path / "rows.csv", "--samples", 2, *on)
        if model != "classifier":
            well("sample", folder / model, "-n", 4, "--out", tmp_path / "x.csv", *on)
            assert well("fill", folder / model, folder / "gaps.csv", "--out", tmp_path / "filled.csv", *on)[:2] == "12"
        if model == "vae":
            well("encode", folder / model, "--out", tmp_path / "z.csv", *on)
            assert (tmp_path / "z.csv").read_text().count("\n") == 201
        well("inspect", folder / model, "--out", tmp_path / "inspected", *on)
        quick = ",".join(check.name for check in selected(None) if check.name not in (*SLOW, *TRAINING))
        well("verify", folder / model, "--out", tmp_path / "verified", "--only", quick, *on)


def failed_with_an_error(folder, model, names):
    with second_device():
        rows = loglik.verify(loglik.load(folder / model, device=str(DEVICE)), only=names).rows
    return [row.reason for row in rows if row.outcome == "fails" and row.reason]


def test_the_checks_that_train_run_there(folder, monkeypatch):
    monkeypatch.setattr(minimal_kl, "STEPS", (1, 2, 3))
    monkeypatch.setattr(vae_training, "STEPS", 2)
    assert not failed_with_an_error(folder, "vae", TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("model", TINY)
def test_the_slower_checks_run_there(folder, model):
    assert not failed_with_an_error(folder, model, (*SLOW, *TRAINING))


def test_models_are_compared_there(folder, tmp_path, elsewhere):
    models = ["--models", "classifier,flow", "--budget", "0.3s", "--label", "label"]
    out = well("compare", folder / "whole.csv", *models, "--out", tmp_path / "c", "--device", DEVICE)
    assert "report:" in out and "left out" not in out


def test_untrained_families_are_inspected_there(folder, tmp_path, elsewhere):
    well("inspect", "flow", folder / "whole.csv", "--out", tmp_path / "i", "--device", DEVICE)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("classifier", {"network": "convnet", "width": 8}),
        ("vae", {"network": "mlp", "width": 8}),
        ("diffusion:mlp", {"depth": 1, "steps": 2, "width": 8}),
    ],
    ids=["classifier", "vae", "diffusion"],
)
def test_images_are_fitted_there_up_to_the_page(tmp_path, elsewhere, model, options, monkeypatch):
    digits, options = shortened(load("digits")), {"batch_size": 8, **options}
    monkeypatch.setattr("loglik.data.as_data", lambda *args, **kwargs: digits)
    well("fit", "digits", "--model", model, "--max-steps", 1, "--out", tmp_path / "run", *settings(**options),
         "--device", DEVICE)  # fmt: skip


def test_the_latents_of_a_ladder_are_diagnosed_there(elsewhere):
    digits = load("digits")
    density = build("vae", digits.spec, width=8).to(DEVICE)
    assert diagnose_latents(density, digits, "test", 0, max_examples=8)


def shortened(data, n=60):
    """The data with n examples in each split."""
    cut = lambda split: Split(split.x[:n], None if split.y is None else split.y[:n])  # noqa: E731
    return replace(data, train=cut(data.train), validation=cut(data.validation), test=cut(data.test))


def test_text_is_fitted_scored_and_continued_there(tmp_path, elsewhere):
    text, run, on = tmp_path / "t.txt", tmp_path / "run", ["--device", DEVICE]
    text.write_text("the cat sat on the mat. " * 200)
    options = settings(window=16, width=8, depth=1, heads=1)
    well("fit", text, "--model", "autoregressive", "--max-steps", 1, "--out", run, *options, *on)
    assert "tokens" in well("evaluate", run, *on)
    assert "the " in well("sample", run, "--prompt", "the ", "--length", 5, *on)


# ---- Python


def test_evaluate_moves_the_density(folder, elsewhere):
    run = loglik.load(folder / "flow")
    assert not there(next(run.density.parameters()))
    evaluate(run, samples=2, device=str(DEVICE))
    assert run.density.device == DEVICE
    assert evaluate_run(run, run.data_for()).result.n > 0


def test_latents_take_rows_from_the_cpu(folder, elsewhere):
    vae = loglik.load(folder / "vae", device=DEVICE)
    latents, x = Latents(vae.density), vae.data_for().split("all").x[:10]
    z = latents.encode(x)
    assert there(z) and latents.decode(z.cpu()).shape == latents.reconstruct(x).shape == x.shape
    assert latents.interpolate(x[:4], x[4:8], steps=3).shape == (4, 3, *x.shape[1:])
    assert latents.traverse(x[:2], 0, [0.0, 1.0]).shape == (2, 2, *x.shape[1:])
    assert latents.diagnose(x).kl.shape == (2,)
    missing = torch.rand(x.shape) < 0.3
    for filled in (latents.fill(x, missing, sweeps=2), fill(vae.density, x, missing)):
        assert not there(filled) and torch.equal(filled[~missing], x[~missing])


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_every_variant_trains_scores_and_samples_there_without_the_host(case):
    check_elsewhere(case)


def test_every_variant_is_tried():
    named = {case.family for case in VARIANTS}
    assert all(f"{family}:{kind}" in named for family, recipe in RECIPES.items() for kind in recipe.kinds)
    assert named >= set(RECIPES)


@pytest.mark.parametrize("family", [*TINY, "text"])
def test_evaluate_reads_no_more_for_more_batches(family, monkeypatch):
    """The batches are copied to the device, and the results of all batches come back together."""
    monkeypatch.setattr("loglik.evaluation.text.BATCH_TOKENS", 256)
    spec, waits = SPECS["text" if family == "text" else "mixed table"], []
    for batches in (3, 6):
        x, y = draw(spec, 256 * batches)
        split = Split(x, y)
        if family == "text":
            stream = Stream(x[: 42 * batches].numpy().flatten(), "uint8", 0, 6 * 42 * batches)
            split = TextSplit(Windows(stream, 6, 6))
        with second_device() as device:
            density = tiny("autoregressive" if family == "text" else family, spec).to(DEVICE)
            density.initialise(*arguments(density, x[:64], y[:64]))
            before = len(device.waits)
            evaluate_split(density, split, spec, model=family, samples=2)
            waits.append(
                [
                    what
                    for what in device.waits[before:]
                    if what not in ("to the second device", "a tensor made of numbers")
                ]
            )
    assert waits[0] == waits[1] and 0 < len(waits[0]) < 20
