"""Every family on a GPU, by the command line and in Python: equal to the CPU, equal twice, equal after a kill.

`pytest -m gpu` runs them on the CUDA GPU; `LOGLIK_GPU=cpu` sends them to another device, to try the tests themselves.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import loglik
from helpers.commands import well
from helpers.mixed import mixed_rows, write_rows
from loglik.evaluation import evaluate
from loglik.training import fit
from loglik.training.batches import Batches

DEVICE = os.environ.get("LOGLIK_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]

IMAGES = ["classifier", "autoregressive", "flow", "flow:glow", "vae", "diffusion"]
TABLES = ["independent", "classifier", "autoregressive", "flow", "vae", "diffusion"]
QUICK = {"diffusion": ["--set", "steps=5"]}


def options(model: str) -> list[str]:
    return [] if model == "independent" else ["--max-steps", "8", *QUICK.get(model, [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table and the same with gaps."""
    folder, rows = tmp_path_factory.mktemp("gpu"), mixed_rows("big")
    gaps = [list(row) for row in rows[:12]]
    for i, row in enumerate(gaps):
        row[i % 3] = ""
    write_rows(folder / "whole.csv", rows)
    write_rows(folder / "gaps.csv", gaps)
    return folder


@pytest.mark.parametrize("model", IMAGES)
def test_every_command_works_on_images(model, tmp_path):
    run = tmp_path / "run"
    well("fit", "digits", "--model", model, "--out", run, "--device", DEVICE, *options(model))
    assert "nats" in well("evaluate", run, "--device", DEVICE)
    well("inspect", run, "--out", tmp_path / "inspected", "--device", DEVICE)
    if model != "classifier":
        well("sample", run, "-n", "20", "--out", tmp_path / "x.npy", "--device", DEVICE)
        assert np.load(tmp_path / "x.npy").shape == (20, 1, 8, 8)
    if model == "vae":
        well("encode", run, "--out", tmp_path / "z.csv", "--split", "test", "--device", DEVICE)


@pytest.mark.parametrize("model", TABLES)
def test_every_command_works_on_tables(model, folder, tmp_path):
    run, table = tmp_path / "run", folder / "whole.csv"
    label = ["--label", "label"] if model == "classifier" else []
    well("fit", table, "--model", model, "--out", run, "--device", DEVICE, *label, *options(model))
    well("evaluate", run, "--per-row", tmp_path / "rows.csv", "--device", DEVICE)
    if model != "classifier":
        well("sample", run, "-n", "20", "--out", tmp_path / "x.csv", "--device", DEVICE)
        well("fill", run, folder / "gaps.csv", "--out", tmp_path / "filled.csv", "--device", DEVICE)
        assert ",," not in (tmp_path / "filled.csv").read_text()


def test_text_is_trained_and_continued(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a dull model.\n" * 400)
    run = tmp_path / "run"
    settings = ["--set", "tokenizer=characters", "--set", "window=32", "--max-steps", "8"]
    well("fit", text, "--model", "autoregressive", "--out", run, "--device", DEVICE, *settings)
    assert "token" in well("evaluate", run, "--device", DEVICE)
    assert well("sample", run, "--prompt", "All ", "--length", "20", "--device", DEVICE).startswith("All ")


def train(model, path=None, **more):
    torch.manual_seed(0)
    sizes = {"steps": 5} if model == "diffusion" else {}
    return fit(model, "digits", out=path, device=DEVICE, max_steps=24, validate_every=8, **sizes, **more)


def difference(one, two) -> float:
    """Return the largest difference of two densities' weights."""
    pairs = zip(one.density.state_dict().values(), two.density.state_dict().values(), strict=True)
    return max(float((a.cpu().double() - b.cpu().double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("model", IMAGES)
def test_one_seed_gives_the_same_weights_twice(model):
    assert difference(train(model), train(model)) == 0.0


@pytest.mark.parametrize("model", IMAGES)
def test_killed_and_resumed_ends_with_the_same_weights(model, tmp_path, monkeypatch):
    whole = train(model, tmp_path / "whole")
    batch, calls = Batches.batch, []

    def stop(self, step):
        calls.append(step)
        if len(calls) > 13:
            raise KeyboardInterrupt
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(model, tmp_path / "killed")
    assert difference(train(model, tmp_path / "killed", resume=True), whole) == 0.0


@pytest.mark.parametrize("model", IMAGES)
def test_a_step_as_a_cuda_graph_is_the_step(model):
    """The first steps agree to rounding; later ones need not, since training amplifies a rounding error."""
    short = {"max_steps": 4, "validate_every": 4, "ema_decay": 0.0}
    torch.manual_seed(0)
    graph = fit(model, "digits", device=DEVICE, cuda_graph=True, **short)
    torch.manual_seed(0)
    plain = fit(model, "digits", device=DEVICE, cuda_graph=False, **short)
    assert difference(graph, plain) < 1e-3


@pytest.mark.parametrize("model", ["classifier", "autoregressive", "flow:glow"])
def test_exact_numbers_are_those_of_the_cpu(model, tmp_path):
    train(model, tmp_path / "run")
    nats = {}
    for device in ("cpu", DEVICE):
        nats[device] = evaluate(loglik.load(tmp_path / "run", device=device)).nats
    if model == "flow:glow":  # dequantization draws on the device
        assert nats[DEVICE] == pytest.approx(nats["cpu"], abs=0.5)
    else:
        assert nats[DEVICE] == pytest.approx(nats["cpu"], rel=1e-4)


@pytest.mark.parametrize("model", ["vae", "diffusion"])
def test_bounds_are_those_of_the_cpu_to_their_noise(model, tmp_path):
    train(model, tmp_path / "run")
    results = [evaluate(loglik.load(tmp_path / "run", device=device), samples=16) for device in ("cpu", DEVICE)]
    assert results[0].nats == pytest.approx(results[1].nats, abs=results[0].stderr)
