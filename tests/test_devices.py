"""With rows on the CPU and a density on another device, the functions that use a trained density move the rows."""

from dataclasses import replace

import pytest
import torch

import loglik
from helpers.elsewhere import DEVICE, Elsewhere, there
from helpers.mixed import mixed_rows, write_rows
from loglik.comparison import evaluate_run
from loglik.data import load
from loglik.data.dataset import Split
from loglik.recipes import build
from loglik.report import write_report
from loglik.tasks import Latents, continue_text, diagnose_latents, draw, fill, fill_table, write_latents


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("devices"), mixed_rows("big")
    gaps = [list(row) for row in rows[:12]]
    for i, row in enumerate(gaps):
        row[i % 3] = ""
    return write_rows(folder / "whole.csv", rows), write_rows(folder / "gaps.csv", gaps)


@pytest.fixture(scope="module")
def runs(table):
    """A run of each family on a table, after one training step on the CPU."""
    options = {"label": "label", "progress": False}
    short = {"max_steps": 1, "width": 8, **options}
    return {
        "independent": loglik.fit("independent", table[0], **options),
        "vae": loglik.fit("vae", table[0], latent=2, **short),
        "diffusion": loglik.fit("diffusion", table[0], steps=3, **short),
        "flow": loglik.fit("flow", table[0], depth=1, **short),
        "autoregressive": loglik.fit("autoregressive", table[0], depth=1, heads=1, **short),
    }


@pytest.fixture
def moved(runs):
    """The runs on the other device; they are moved back afterwards."""
    with Elsewhere():
        for run in runs.values():
            run.density.to(DEVICE)
        yield runs
        for run in runs.values():
            run.density.to("cpu")


def shortened(data, n=12):
    """Return the data with n examples in each split."""
    cut = lambda split: Split(split.x[:n], None if split.y is None else split.y[:n])  # noqa: E731
    return replace(data, train=cut(data.train), validation=cut(data.validation), test=cut(data.test))


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
        assert y[torch.arange(2)].device == DEVICE


def test_latents_take_rows_from_the_cpu(moved, table, tmp_path):
    vae = moved["vae"]
    latents, x = Latents(vae.density), vae.data_for(str(table[0])).split("all").x[:40]
    z = latents.encode(x)
    assert there(z) and latents.decode(z.cpu()).shape == latents.reconstruct(x).shape == x.shape
    assert latents.interpolate(x[:4], x[4:8], steps=3).shape == (4, 3, *x.shape[1:])
    assert latents.traverse(x[:2], 0, [0.0, 1.0]).shape == (2, 2, *x.shape[1:])
    assert latents.diagnose(x).kl.shape == (2,)
    missing = torch.rand(x.shape) < 0.3
    for filled in (latents.fill(x, missing, sweeps=2), fill(vae.density, x, missing)):
        assert not there(filled) and torch.equal(filled[~missing], x[~missing])
    assert write_latents(vae, tmp_path / "z.csv", str(table[0])) == 200
    assert diagnose_latents(vae.density, vae.data_for(str(table[0])), "test", 0)


def test_the_latents_of_a_ladder_are_looked_at_wherever_it_is():
    digits = load("digits")
    density = build("vae", digits.spec, width=8)
    with Elsewhere():
        assert diagnose_latents(density.to(DEVICE), digits, "test", 0, max_examples=8)


@pytest.mark.parametrize("model", ["independent", "vae", "diffusion", "flow", "autoregressive"])
def test_gaps_are_filled_wherever_the_density_is(moved, table, tmp_path, model):
    run = moved[model]
    assert fill_table(run, table[1], tmp_path / "filled.csv") == 12


@pytest.mark.parametrize("model", ["classifier", "flow", "vae", "diffusion"])
def test_a_run_is_evaluated_and_drawn_wherever_it_is(model, tmp_path):
    """What `loglik fit` does after training: scores, terms, rates, latents, samples and the report."""
    digits = load("digits")
    options = {"classifier": {"network": "convnet"}, "vae": {"network": "mlp"}, "diffusion": {"depth": 1, "steps": 2}}
    run = loglik.fit(model, digits, max_steps=1, batch_size=8, width=8, progress=False, **options.get(model, {}))
    digits = shortened(digits)
    here = evaluate_run(run, digits, samples=2, seed=0).result
    with Elsewhere():
        run.density.to(DEVICE)
        entry = evaluate_run(run, digits, samples=2, seed=0)
        assert entry.result.nats == pytest.approx(here.nats, abs=1e-2)
        write_report(tmp_path / "report.html", digits, [entry], title="t", seed=0, split="test")
        diagnose_latents(run.density, digits, "test", 0)
        if entry.result.event == "x":
            assert not there(draw(run.density, digits.spec, 4, seed=0))


def test_text_is_scored_and_continued_wherever_it_is(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the cat sat on the mat. " * 200)
    run = loglik.fit("autoregressive", text, max_steps=1, window=16, width=8, depth=1, heads=1, progress=False)
    with Elsewhere():
        run.density.to(DEVICE)
        assert evaluate_run(run, run.data_for(text)).result.n > 100
        assert len(continue_text(run, "the ", length=5)[0]) > 4
