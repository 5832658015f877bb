"""evaluate: a run or a density on data that are passed, or found again."""

import numpy as np
import pytest
import torch

import loglik
from loglik import runs
from loglik.data import from_arrays
from loglik.flows import Elementwise, Spline
from loglik.training import fit

RNG = np.random.default_rng(0)
REAL = RNG.normal(3.0, 2.0, size=(60, 2))
SETTINGS = {"max_steps": 3, "validate_every": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def hand_run(tmp_path_factory) -> runs.Run:
    density = loglik.Flow([Elementwise(2, Spline(4, 4.0))], loglik.StandardNormal((2,)))
    return fit(density, REAL, out=tmp_path_factory.mktemp("hand") / "run", **SETTINGS)


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return fit("vae", REAL, out=tmp_path / "run", width=8, **SETTINGS)


@pytest.mark.parametrize("rows", [3, 60])
def test_data_that_are_passed_are_used_whole(rows, hand_run, tmp_path) -> None:
    x = np.random.default_rng(1).normal(size=(rows, 2))
    np.save(tmp_path / "x.npy", x)
    truth = hand_run.density.log_prob(torch.tensor(x, dtype=torch.float32)).mean().item()
    for data in (x, tmp_path / "x.npy", from_arrays(x)):
        for model in (hand_run, hand_run.density):
            result = loglik.evaluate(model, data)
            assert result.n == rows
            assert result.nats == pytest.approx(truth, rel=1e-5)
    assert loglik.evaluate(hand_run, x, split="train").n == rows - 2 * (rows // 10)


def test_a_run_of_data_in_memory_asks_for_data(run) -> None:
    with pytest.raises(ValueError, match="trained on data in memory: pass data"):
        loglik.evaluate(loglik.load(run.path))
    with pytest.raises(ValueError, match="a density by itself does not know what it was trained on"):
        loglik.evaluate(run.density)
    with pytest.raises(ValueError, match=r"examples of shape \(3,\), expected \(2,\)"):
        loglik.evaluate(run, RNG.normal(size=(20, 3)))


def test_a_run_of_a_file_finds_it_again(tmp_path) -> None:
    np.save(tmp_path / "x.npy", REAL)
    fit("independent", tmp_path / "x.npy", out=tmp_path / "run", seed=3)
    loaded = loglik.load(tmp_path / "run")
    result = loglik.evaluate(loaded)
    assert result.n == 6
    assert result.nats == loglik.evaluate(loaded, tmp_path / "x.npy", split="test").nats
    assert loglik.evaluate(loaded, split="all").n == 60
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        loglik.evaluate(loaded)


def test_a_text_has_no_rows_to_write(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 60)
    run = fit("independent", tmp_path / "a.txt", progress=False, window=8)
    with pytest.raises(ValueError, match="a text has no rows"):
        loglik.evaluate(run, per_row=tmp_path / "rows.csv")
