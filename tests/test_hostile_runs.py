"""Runs from strangers: each is refused in one line with exit status 2, in little time and memory, and writes nothing.

A mutation changes a good run as an attacker could, with right SHA-256s, since these protect against accidents only.
"""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import refused, well
from helpers.hostile_configs import CONFIG, TOKENIZERS, Mutation, values
from helpers.hostile_files import METRICS, OF_WEIGHTS, RESUMED
from loglik.training import fit

CPU_SECONDS, BYTES = 2.0, 2**30


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[Path, list]:
    """A flow of a table with a category, with two checkpoints, and the command that resumes it."""
    root = tmp_path_factory.mktemp("hostile")
    rows = [f"{i % 17 * 0.37:.2f},{'xyz'[i % 3]}" for i in range(60)]
    (root / "t.csv").write_text("\n".join(["a,k", *rows]))
    fit("flow", root / "t.csv", out=root / "run", max_steps=4, width=8, depth=1, validate_every=2)
    return root / "run", ["fit", root / "t.csv", "--model", "flow", "--resume", "--out"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A Transformer of a text."""
    root = tmp_path_factory.mktemp("hostile-text")
    (root / "t.txt").write_text("the cat sat on the mat. " * 60)
    options = {"max_steps": 1, "width": 16, "depth": 1, "window": 16, "tokenizer": "characters"}
    fit("autoregressive", root / "t.txt", out=root / "run", **options)
    return root / "run"


def snapshot(root: Path, but: Path) -> dict[Path, bytes | None]:
    """The files and folders below a root, without a folder's."""
    return {p: p.read_bytes() if p.is_file() else None for p in root.rglob("*") if but != p and but not in p.parents}


@pytest.fixture
def refuse(tmp_path, monkeypatch) -> Callable[..., str]:
    """Copy a run, mutate it and run a command, which must refuse it."""
    for name in ("home", "cache", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "run"

    def check(good: Path, mutate: Mutation, *words: object) -> str:
        shutil.copytree(good, path)
        mutate(path)
        before, peak = snapshot(tmp_path, path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        line = refused(*words, path)
        assert time.process_time() - start < CPU_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES
        assert snapshot(tmp_path, path) == before
        assert line[:-1].isprintable() and len(line) < 1200
        return line

    return check


def cases(table: list[tuple[str, Mutation]]) -> Any:
    return pytest.mark.parametrize("mutate", [pytest.param(mutate, id=name) for name, mutate in table])


@cases([*CONFIG, *OF_WEIGHTS, *METRICS])
def test_a_hostile_run_is_refused(mutate, table, refuse) -> None:
    refuse(table[0], mutate, "sample", "-n", 1)


@cases(TOKENIZERS)
def test_a_hostile_text_run_is_refused(mutate, text, refuse) -> None:
    refuse(text, mutate, "sample", "-n", 1)


@cases(RESUMED)
def test_a_hostile_run_is_not_resumed(mutate, table, refuse) -> None:
    refuse(table[0], mutate, *table[1])


def test_the_good_runs_are_read(table, text, tmp_path) -> None:
    for good in (table[0], text):
        well("sample", shutil.copytree(good, tmp_path / good.parent.name), "-n", 1)


def test_the_errors_name_the_key(table, refuse, tmp_path) -> None:
    for key, value, words in [
        ("spec.event_shape", [2**40], "at spec.event_shape[0]: Expected 'int' <= 2147483648"),
        ("steps", "x", "at steps: Expected 'int', got 'str'"),
        ("spec.columns.1.type", 3, "at spec.columns[1].type"),
        ("other", 1, "it contains unknown field 'other'"),
    ]:
        line = refuse(table[0], values(key, value)[0][1], "sample")
        assert words in line
        shutil.rmtree(tmp_path / "run")
