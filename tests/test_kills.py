"""SIGKILL in every family and variant: what is resumed ends as a run that was not killed, bit for bit.

Each training is a forked process, which is killed at a step or at a moment of writing.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import loglik
from helpers.training import LABELS, REAL, same, weights
from loglik import files
from loglik.recipes import RECIPES
from loglik.training import fit
from loglik.training.batches import Batches

IMAGES = (np.random.default_rng(0).integers(0, 17, (60, 1, 4, 4)).astype(np.uint8), np.arange(60) % 2)
STEPS = 12
OPTIONS = {"max_steps": STEPS, "validate_every": 3, "batch_size": 16, "warmup": 2, "progress": False}
CLOSED_FORM = ("independent", "mixture:copulas")  # which have no training
FAMILIES = [name for name in RECIPES if name not in CLOSED_FORM]
VARIANTS = [name for family in FAMILIES for name in (family, *(f"{family}:{kind}" for kind in RECIPES[family].kinds))]
VARIANTS = [name for name in VARIANTS if name not in CLOSED_FORM]
SLOW_ON_TABLES = {"flow:glow", "diffusion:unet", "diffusion:dit", "vae:autoregressive"}  # which are for images


def train(name: str, path: Path, resume: bool = False) -> loglik.runs.Run:
    data = IMAGES if name in SLOW_ON_TABLES else (REAL[:60], LABELS[:60])
    options = {} if resume else OPTIONS
    return fit(name, data, out=path, resume=resume, **options)


def killed(train: Callable[[], object], after: float | None = None) -> bool:
    """Train in a process that kills itself, or is killed after some seconds; return whether it was killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            train()
            status = 0
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def at_call(monkeypatch, where: object, name: str, call: int) -> None:
    """Kill this process at the n-th call of a function."""
    real, calls = getattr(where, name), iter(range(1, 10**6))

    def function(*args, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    monkeypatch.setattr(where, name, function)


def ends_as(whole: dict[str, torch.Tensor], name: str, path: Path) -> None:
    """The run, resumed or begun again, has these weights, in memory and on disk."""
    begun = (path / "config.yaml").exists()
    again = train(name, path, resume=begun)
    assert same(weights(again.density), whole) and again.steps == STEPS
    assert same(weights(loglik.load(path).density), whole)


def attack(name: str, tmp_path: Path, monkeypatch, points: list[tuple[object, str, int]]) -> None:
    whole = weights(train(name, tmp_path / "whole").density)
    for number, point in enumerate(points):
        path = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch:
            at_call(patch, *point)
            assert killed(lambda path=path: train(name, path))
        ends_as(whole, name, path)


@pytest.mark.parametrize("name", FAMILIES)
def test_killed_at_a_step_at_a_rename_and_while_writing(name, tmp_path, monkeypatch) -> None:
    rng = random.Random(name)
    points = [
        (Batches, "batch", rng.randint(2, STEPS)),
        (os, "replace", rng.randint(3, 20)),
        (files, "write_tensors", rng.randint(1, 6)),
    ]
    attack(name, tmp_path, monkeypatch, points)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_twelve_points_of_writing(name, tmp_path, monkeypatch) -> None:
    points = [(os, "replace", call) for call in range(1, 20, 3)]
    points += [(files, "write_tensors", call) for call in (1, 2, 3, 5)] + [(files, "digest", call) for call in (2, 5)]
    attack(name, tmp_path, monkeypatch, points)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_twenty_moments(name, tmp_path, monkeypatch) -> None:
    start = time.perf_counter()
    whole = weights(train(name, tmp_path / "whole").density)
    seconds, rng = time.perf_counter() - start, random.Random(name)
    for number in range(20):
        path = tmp_path / f"run-{number}"
        killed(lambda path=path: train(name, path), after=rng.uniform(0, seconds))
        ends_as(whole, name, path)
