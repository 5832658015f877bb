"""A diffusion on the command line: its likelihood three ways, its samplers, and the curve of quality."""

import importlib.util
import json
from pathlib import Path

import pytest

import loglik
from helpers.commands import refused, well

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny diffusion, conditional on the label, and a classifier, of digits; trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"width": 8, "depth": 1, "max_steps": 2, "progress": False}
    loglik.fit("diffusion", "digits", out=folder / "d", steps=4, conditional=True, **common)
    loglik.fit("independent", "digits", out=folder / "i", progress=False)
    loglik.fit("classifier", "digits", out=folder / "c", max_steps=2, progress=False)
    return folder


def test_evaluate_names_its_bound(trained, tmp_path):
    found = {}
    for method, steps in (("vlb", None), ("vlb", 10), ("ode", 6)):
        words = ["--method", method, *(["--steps", steps] if steps else []), "--samples", 1]
        out = well("evaluate", trained / "d", "--split", "validation", "--json", tmp_path / "e.json", *words)
        (result,) = json.loads((tmp_path / "e.json").read_text())
        found[method, steps] = result
        assert f"({result['bound']})" in out
        assert ("the solver's error" in out) == (method == "ode")
    assert [r["bound"] for r in found.values()] == ["lower", "lower", "estimate"]
    assert found["vlb", 10]["nats"] < found["vlb", None]["nats"]
    assert found["ode", 6]["numerical_error"] > 0 and found["vlb", None]["numerical_error"] is None
    assert set(found["ode", 6]["terms"]) == {"prior", "log-determinant", "dequantization"}


def test_sample_takes_a_method(trained, tmp_path):
    well("sample", trained / "d", "-n", 4, "--method", "unipc", "--steps", 3, "--out", tmp_path / "x.npy")
    assert (tmp_path / "x.npy").is_file()
    out = well("sample", trained / "d", "-n", 2, "--label", 3, "--guidance", 2.5, "--out", tmp_path / "y.npy")
    assert out.startswith("2 samples")


def test_what_does_not_fit_is_one_line(trained):
    assert "unknown method 'exact': use vlb or ode" in refused("evaluate", trained / "d", "--method", "exact")
    assert "steps must be at least 2" in refused("evaluate", trained / "d", "--method", "ode", "--steps", 0)
    assert "unknown sampler 'best'" in refused("sample", trained / "d", "--method", "best")
    assert "steps must be at least 1, got 0" in refused("sample", trained / "d", "--steps", 0)
    assert "this density has none" in refused("evaluate", trained / "c", "--method", "ode")
    assert "this density has none" in refused("sample", trained / "i", "--guidance", 3)


def test_the_curve_of_quality(trained, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("samplers", BENCHMARKS / "samplers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = ["--n", "40", "--evaluations", "3", "--methods", "heun,ipndm", "--reference", "4", "--out", str(tmp_path)]
    module.main([str(trained / "d"), str(trained / "c"), *words])
    rows = json.loads((tmp_path / "samplers.json").read_text())
    assert [(r["method"], r["evaluations"]) for r in rows] == [("ddpm", 4), ("heun", 3), ("ipndm", 3)]
    assert all(r["frechet"] > 0 for r in rows) and (tmp_path / "samplers.png").is_file()
    import torch

    a = torch.randn(4000, 3, dtype=torch.float64)
    assert abs(module.frechet(a, a)) < 1e-9 and abs(module.mmd(a[::2], a[1::2])) < 0.05
    assert module.frechet(a, 2 * a + 1) == pytest.approx(6, abs=0.4)  # 3 · (1² + (2 - 1)²)


def test_the_ode_benchmark_measures_both(monkeypatch):
    spec = importlib.util.spec_from_file_location("ode_likelihood", BENCHMARKS / "ode_likelihood.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    diffusion, x = module.trained_on_digits(2)
    rows = module.measure(diffusion, x[:4], rounds=1, steps=30, tolerance=1e-2)
    for row in rows.values():
        assert row["mean error"] < 0.1 and row["passes"] > 20
