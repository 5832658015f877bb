"""evaluate_split: every field of a result, for each kind of density and data."""

import json
import math

import pytest
import torch
from torch import nn

from helpers.densities import SPECS
from helpers.scored import scored
from loglik.classification import Classifier
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.diffusion import ODE, Diffusion
from loglik.evaluation import Result, evaluate_split, log_probs, row_scores

IMAGE = SPECS["image"]


def evaluated(family: str, spec: DataSpec = IMAGE, **options) -> tuple[Result, Split]:
    density, split = scored(family, spec)
    return evaluate_split(density, split, spec, model=family, **options), split


def test_a_row_of_whole_numbers_has_bits():
    density, split = scored("autoregressive")
    scores = density.eval().log_prob(split.x).double()
    row = evaluate_split(density, split, IMAGE, model="ar", train_seconds=1.5, steps=7)
    assert (row.model, row.bound, row.n, row.samples, row.event) == ("ar", "exact", 100, 1, "x")
    assert (row.train_seconds, row.steps) == (1.5, 7)
    assert row.nats == pytest.approx(scores.mean().item())
    assert row.stderr == pytest.approx(scores.std().item() / 10)
    assert row.bits_per_dim == pytest.approx(-row.nats / (4 * math.log(2)))
    assert row.params == sum(p.numel() for p in density.parameters())
    assert row.bits_per_byte is None and row.accuracy is None and row.gain is None and row.terms == {}
    assert row.samples_per_second > 0
    assert json.loads(json.dumps(row.to_dict()))["nats"] == row.nats


@pytest.mark.parametrize("spec", ["table", "mixed table", "real array"])
def test_real_numbers_have_no_bits(spec):
    row, _ = evaluated("flow", SPECS[spec])
    assert row.bits_per_dim is None and math.isfinite(row.nats)


def test_text_has_bits_per_byte():
    row, _ = evaluated("independent", SPECS["text"])
    assert row.bits_per_byte == row.bits_per_dim > 0 and row.params == 0


def test_gain_is_paired():
    density, split = scored("autoregressive")
    baseline = torch.randn(100, dtype=torch.float64)
    row = evaluate_split(density, split, IMAGE, model="ar", baseline=baseline)
    differences = density.log_prob(split.x).double() - baseline
    assert row.gain == pytest.approx(differences.mean().item())
    assert row.gain_stderr == pytest.approx(differences.std().item() / 10)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize(
    ("family", "spec", "names"),
    [
        ("vae", "image", {"reconstruction", "-KL"}),
        ("vae", "mixed table", {"reconstruction", "-KL", "log-determinant"}),
        ("vae:hierarchical", "image", {"reconstruction", "-KL"}),
        ("vae:diffusion", "image", {"reconstruction", "-KL"}),
        ("flow", "image", {"base", "log-determinant"}),
        ("diffusion", "image", {"reconstruction", "prior", "diffusion"}),
        ("diffusion:ode", "image", {"dequantization", "prior", "log-determinant"}),
        ("diffusion:ode", "table", {"prior", "log-determinant"}),
    ],
)
def test_terms_sum_to_the_number(family, spec, names, samples):
    """Of all rows and the same draws; K importance weights add a term of their own, which is positive."""
    density, split = scored(family.removesuffix(":ode"), SPECS[spec], n=8 if family.endswith(":ode") else 30)
    for diffusion in density.modules() if family.endswith(":ode") else []:
        if isinstance(diffusion, Diffusion):
            diffusion.likelihood = ODE(5, tolerance=100.0)
    row = evaluate_split(density, split, SPECS[spec], model=family, samples=samples, seed=4)
    assert row.nats == pytest.approx(log_probs(density, split, samples=samples, seed=4).mean().item(), rel=1e-5)
    assert sum(row.terms.values()) == pytest.approx(row.nats, rel=1e-6)
    added = set(row.terms) - names
    assert names <= set(row.terms) and added == (
        {f"tightening (K = {samples})"} if samples > 1 and density.importance_weighted else set()
    )
    assert all(row.terms[name] > 0 for name in added)


def test_terms_of_many_batches_sum_to_the_number():
    density, split = scored("vae", n=2000)  # eight batches
    row = evaluate_split(density, split, IMAGE, model="vae", samples=2, seed=1)
    assert row.nats == pytest.approx(log_probs(density, split, samples=2, seed=1).mean().item(), rel=1e-6)
    assert sum(row.terms.values()) == pytest.approx(row.nats, rel=1e-6)


def test_rows_that_are_given_are_the_number_and_have_no_terms():
    density, split = scored("vae")
    rows = row_scores(density, split, seed=1)
    row = evaluate_split(density, split, IMAGE, model="vae", seed=1, rows=rows)
    assert row.nats == rows.nats.mean().item() and row.terms == {}
    assert row.samples == round(rows.draws.double().mean().item())


def test_a_seed_fixes_a_row():
    density, split = scored("flow")
    rows = [evaluate_split(density, split, IMAGE, model="flow", samples=3, seed=seed) for seed in (1, 1, 2)]
    assert rows[0].nats == rows[1].nats != rows[2].nats


def test_a_classifier_is_scored_on_labels():
    """Three of four labels right, always with the same confidence."""
    spec = DataSpec(kind="array", event_shape=(2,), classes=("a", "b"))

    class First(nn.Module):
        def forward(self, x):
            return torch.tensor([math.log(0.9), math.log(0.1)]).expand(len(x), -1)

    density = Classifier(nn.Identity(), First(), 2)
    split = Split(torch.randn(8, 2), torch.tensor([0, 0, 0, 1] * 2))
    row = evaluate_split(density, split, spec, model="c", baseline=torch.zeros(8, dtype=torch.float64))
    assert row.event == "y" and row.accuracy == 0.75
    assert row.calibration_error == pytest.approx(0.15, abs=1e-6)
    assert row.nats == pytest.approx(0.75 * math.log(0.9) + 0.25 * math.log(0.1))
    assert row.gain is None and row.bits_per_dim is None  # a label's nats are not the data's
    assert row.accuracy_interval == pytest.approx((0.409, 0.929), abs=1e-3)
    assert row.stderr == pytest.approx((math.log(0.9) - math.log(0.1)) * math.sqrt(0.75 * 0.25 / 7))

    easy = Split(split.x, torch.zeros(8, dtype=torch.long))  # all right, and the same score: no spread
    row = evaluate_split(density, easy, spec, model="c")
    assert row.accuracy == 1 and row.accuracy_interval == pytest.approx((0.676, 1), abs=1e-3)
    assert row.stderr == pytest.approx(math.log(9) / 9)
    assert row.calibration_interval[0] < row.calibration_error < row.calibration_interval[1]
    assert json.loads(json.dumps(row.to_dict()))["accuracy_interval"] == list(row.accuracy_interval)


def test_an_empty_split_is_refused():
    density, split = scored("independent")
    with pytest.raises(ValueError, match="the split is empty"):
        evaluate_split(density, Split(split.x[:0], split.y[:0]), IMAGE, model="i")
