"""A run that was killed anywhere and is resumed ends as one that was not; another configuration is refused."""

import os

import pytest
import torch

import loglik
from helpers.training import LABELS, REAL, Killed, flow, kill, numbers, same, settings, weights
from loglik import files, runs
from loglik.training import checkpoint, fit
from loglik.training.batches import Batches

CRASHES = {
    # where the process ends: the function whose n-th call raises, before or after it has done its work
    "in a step": (Batches, "batch", 16, "before"),
    "before the first checkpoint": (Batches, "batch", 3, "before"),
    "before the weights of the best step": (runs, "write_weights", 2, "before"),
    "before a checkpoint": (checkpoint, "save", 3, "before"),
    "while writing a checkpoint": (files, "digest", 5, "before"),
    "before its checksum": (os, "replace", 4, "before"),
    "after a checkpoint": (checkpoint, "save", 3, "after"),
    "after the last checkpoint": (checkpoint, "save", 4, "after"),
}


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
        kill(patch, Batches, "batch", 15, "before")
        with pytest.raises(Killed):
            fit("vae", (REAL, LABELS), out=tmp_path / "run", conditional=True, **options)
    with pytest.raises(ValueError, match="started with another options") as error:
        fit("vae", (REAL, LABELS), out=tmp_path / "run", resume=True, conditional=False, **options)
    assert "\n" not in str(error.value)
    resumed = fit("vae", (REAL, LABELS), out=tmp_path / "run", resume=True)  # its options and settings are its own
    assert whole.steps == resumed.steps == 20
    assert same(weights(resumed.density), weights(whole.density))


@pytest.mark.parametrize("damage", ["truncated", "changed", "wrong checksum", "no checksum"])
def test_a_damaged_checkpoint_is_passed_over(damage, uninterrupted, tmp_path, monkeypatch) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill(patch, Batches, "batch", 20, "before")
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
    assert state is not None and state[1].step == 12
    resumed = fit(flow(dropout=0.3), REAL, out=path, resume=True, settings=settings())
    assert same(weights(resumed.density), weights(uninterrupted.density))
    assert numbers(resumed.history) == numbers(uninterrupted.history)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 5e-3}, "started with learning_rate=0.001, now learning_rate=0.005"),
        ({"batch_size": 16}, "started with batch_size=32, now batch_size=16"),
        ({"seed": 1}, "started with seed=0, now seed=1"),
        ({"validate_every": 5}, "started with validate_every=6, now validate_every=5"),
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
    with pytest.raises(ValueError, match="started with another spec"):
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
