"""Flows on hostile tables: whatever the columns hold, training ends in finite numbers, or says at once why not."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loglik
from loglik.data.tables import from_frame
from loglik.evaluation import log_probs

KINDS = ("constant", "normal", "heavy", "outlier", "integer", "huge", "minute", "category", "boolean", "same")


def column(kind: str, n: int, rng: np.random.Generator, earlier: list[np.ndarray]) -> np.ndarray:
    """A column of n rows."""
    if kind == "constant":
        return np.full(n, rng.choice([0.0, 7.5, -1e9]))
    if kind == "heavy":
        return rng.standard_cauchy(n)
    if kind == "outlier":
        return np.where(np.arange(n) == n // 2, 1e6, rng.normal(size=n))
    if kind == "integer":
        return rng.poisson(rng.choice([0.1, 5, 1e5]), n)
    if kind == "huge":
        return 1e12 + 1e10 * rng.normal(size=n)
    if kind == "minute":
        return 1e-12 * rng.normal(size=n)
    if kind == "category":
        return rng.choice(["red", "green", "blue"], n)
    if kind == "boolean":
        return rng.random(n) < 0.1
    if kind == "same" and earlier:
        return earlier[-1]
    return rng.normal(size=n)


def fit_and_judge(kinds: list[str], n: int, seed: int, model: str) -> None:
    rng, columns = np.random.default_rng(seed), []
    for kind in kinds:
        columns.append(column(kind, n, rng, columns))
    frame = pl.DataFrame([pl.Series(f"c{d}", values) for d, values in enumerate(columns)])
    try:
        data = from_frame(frame, name="table", source="table")
        run = loglik.fit(model, data, max_steps=12, progress=False, seed=seed, width=16, depth=2, validate_every=4)
    except ValueError as refusal:
        assert "\n" not in str(refusal) and len(data_words := str(refusal)) > 20, data_words
        return
    assert log_probs(run.density, data.test, samples=2).isfinite().all()
    assert all(np.isfinite(row["validation_nats"]) for row in run.history)
    with torch.no_grad():
        assert run.density.sample(8).isfinite().all()


def hostile(examples: int):
    def decorate(test):
        return settings(
            deadline=None, derandomize=True, max_examples=examples, suppress_health_check=list(HealthCheck)
        )(
            given(
                kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
                n=st.integers(2, 80),
                seed=st.integers(0, 999),
                model=st.sampled_from(["flow", "flow:nsf-ar", "flow:maf", "flow:realnvp"]),
            )(test)
        )

    return decorate


@pytest.mark.parametrize("model", ["flow", "flow:maf"])
def test_every_hostile_column_at_once(model):
    fit_and_judge(list(KINDS), 60, 0, model)


@hostile(6)
def test_a_few_hostile_tables(kinds, n, seed, model):
    fit_and_judge(kinds, n, seed, model)


@pytest.mark.slow
@hostile(200)
def test_two_hundred_hostile_tables(kinds, n, seed, model):
    fit_and_judge(kinds, n, seed, model)


@pytest.mark.parametrize("kind", ["nsf", "nsf-ar", "realnvp", "maf", "iaf", "continuous"])
def test_every_kind_learns_by_its_name(kind):
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 300)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * rng.normal(size=(300, 2))
    run = loglik.fit(f"flow:{kind}", x, max_steps=15, progress=False, width=16, depth=2, validate_every=5)
    assert run.model == f"flow:{kind}" and run.history[-1]["validation_nats"] > -4
    assert run.density.sample(3).shape == (3, 2)


def test_unknown_kinds_name_the_known():
    with pytest.raises(ValueError, match=r"unknown model 'flow:gloww': use flow:nsf, .*flow:glow"):
        loglik.fit("flow:gloww", np.zeros((20, 2)))
    with pytest.raises(ValueError, match=r"unknown model .vae:big.: use vae:vamp, vae:flow"):
        loglik.fit("vae:big", np.zeros((20, 2)))
    with pytest.raises(ValueError, match="kind=glow models images"):
        loglik.fit("flow:glow", np.random.default_rng(0).normal(size=(20, 2)), max_steps=1)


def test_rows_are_scored_in_the_inputs_order(tmp_path):
    """Anomaly detection as a user does it: the far row has the lowest log-likelihood, at its own place."""
    rng = np.random.default_rng(0)
    run = loglik.fit("flow", rng.normal(size=(200, 2)), max_steps=10, progress=False, width=16, depth=2)
    fresh = rng.normal(size=(50, 2)).astype(np.float32)
    fresh[17] = 40
    result = loglik.evaluate(run, fresh, per_row=tmp_path / "new" / "scores.csv")
    scores = pl.read_csv(tmp_path / "new" / "scores.csv")
    assert scores.columns == ["row", "nats", "stderr"] and scores["row"].to_list() == list(range(1, 51))
    truth = run.density.log_prob(torch.from_numpy(fresh)).detach().double()
    torch.testing.assert_close(torch.tensor(scores["nats"].to_list(), dtype=torch.float64), truth, rtol=1e-4, atol=1e-4)
    assert scores["nats"].arg_min() == 17 and (scores["stderr"] == 0).all()
    assert abs(result.nats - scores["nats"].mean()) < 1e-6
    assert abs(result.stderr - scores["nats"].std() / math.sqrt(50)) < 1e-6


def test_shares_that_add_up_are_learned_as_such():
    """Two columns apart and the rest to 1, up to 1e-3: near the entropy at once, and samples add up too."""

    def shares(n):
        x = torch.randn(n, 2)
        return torch.cat([x, 1 - x.sum(1, keepdim=True) + 1e-3 * torch.randn(n, 1)], 1)

    run = loglik.fit("flow", shares(600), width=16, depth=2, max_steps=60, progress=False)
    truth = -3 * 0.5 * math.log(2 * math.pi * math.e) - math.log(1e-3)
    assert truth - 0.4 < run.density.log_prob(shares(1000)).mean().item() < truth + 0.2
    assert (run.density.sample(200).sum(1) - 1).abs().median() < 5e-3
