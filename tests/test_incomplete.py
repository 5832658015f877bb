"""Scores of rows with missing values and unseen categories, and what is made of such rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import loglik
from helpers.densities import SPECS, draw, tiny, train
from loglik.baselines import Independent
from loglik.data.dataset import Split, into_splits
from loglik.data.novelty import with_novelty
from loglik.data.spec import Column, DataSpec
from loglik.density import Density
from loglik.evaluation import evaluate_split, row_scores, summary
from loglik.evaluation.incomplete import gaps_of, scorable
from loglik.evaluation.scores import log_probs
from loglik.tasks import fill

NAN = torch.nan
COLOURS = Column(name="colour", type="categorical", categories=("r", "g", "b"), novelty=0.1)
SPEC = DataSpec(kind="table", event_shape=(2,), columns=(COLOURS, replace(COLOURS, name="other", missing=True)))


def independent(x: torch.Tensor) -> Independent:
    density = Independent((2,), [True, True], categories=[3, 3])
    density.initialise(x)
    return density


def test_novelty_is_good_turings_share():
    colour = replace(COLOURS, novelty=0.0, missing=True)
    spec = DataSpec(kind="table", event_shape=(2,), columns=(colour, Column(name="x", type="numeric")))
    codes = torch.tensor([0.0] * 7 + [1.0, 2.0, NAN])  # two categories occur once among 9 values
    data = replace(
        into_splits("t", spec, torch.zeros(20, 2), None, seed=0), train=Split(torch.stack([codes, codes], 1))
    )
    found = with_novelty(data).spec
    assert found.columns[0].novelty == 2.5 / 10
    assert found.columns[1] == spec.columns[1]
    assert DataSpec.from_dict(found.to_dict()) == found


def test_a_known_and_an_unseen_category_have_probabilities_that_sum_to_one():
    density = independent(torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0], [2.0, NAN]]))
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    rows = Split(torch.cartesian_prod(values, values))
    scored, gaps = scorable(density, rows, SPEC)
    p = log_probs(scored, rows).exp()
    assert p.sum().item() == pytest.approx(1)
    assert p[-1].item() == pytest.approx(0.01)  # both unseen
    seen = density.log_prob(torch.tensor([[0.0, 1.0]])).exp().item()
    assert p[1].item() == pytest.approx(0.81 * seen)
    assert gaps.rows == 7 and gaps.cells == 32 and gaps.unseen == {"colour": 4, "other": 4}
    line = (
        "column 'colour': 4 values are categories that the training data did not have, scored with the probability 0.1"
    )
    assert gaps.lines(SPEC)[0] == line


def test_complete_rows_are_scored_as_ever():
    density = independent(torch.tensor([[0.0, 1.0], [1.0, 2.0]]))
    split = Split(torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    scored, gaps = scorable(density, split, SPEC)
    assert scored is density and gaps.rows == 0
    result = evaluate_split(density, split, SPEC, model="independent")
    assert result.incomplete == 0 and result.nats_per_cell is None and result.notes == ()


def test_an_evaluation_says_what_is_missing():
    density = independent(torch.tensor([[0.0, 1.0], [1.0, 2.0]]))
    split = Split(torch.tensor([[0.0, 1.0], [1.0, NAN], [3.0, 0.0]]))
    result = evaluate_split(density, split, SPEC, model="independent")
    rows = row_scores(scorable(density, split, SPEC)[0], split)
    assert result.incomplete == 2
    assert result.nats == pytest.approx(rows.nats.mean().item())
    assert result.nats_per_cell == pytest.approx(rows.nats.sum().item() / 5)
    assert f"{result.nats_per_cell:.3f} per observed value" in summary(result)
    assert len(result.notes) == 1 and "column 'colour': 1 values" in result.notes[0]
    known = density.log_prob(torch.tensor([[0.0, 1.0], [1.0, NAN]])) + math.log(0.9)
    torch.testing.assert_close(rows.nats[:2], known)


class Gaussian(Density):
    """Two columns with a correlation of 0.9: exact, but of complete rows."""

    event_shape = (2,)
    truth = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))

    def log_prob(self, x, context=None, *, samples=1):
        assert x.isfinite().all()
        log_p = self.truth.log_prob(x)
        return log_p if context is None else self.truth.log_prob(x - 10 * context[:, None])

    def sample(self, n, context=None):
        return self.truth.sample((n,)) + (0 if context is None else 10 * context[:, None])


class Labelled(Gaussian):
    conditional = True


NUMBERS = DataSpec(
    kind="table",
    event_shape=(2,),
    columns=tuple(Column(name=n, type="numeric") for n in "ab"),
    label="y",
    classes=("0", "1"),
)


@pytest.mark.parametrize("density", [Gaussian(), Labelled()])
def test_a_density_of_complete_rows_scores_what_is_observed(density):
    """Against the marginals of a Gaussian; with labels, in each class by itself."""
    torch.manual_seed(0)
    y = torch.arange(60) % 2 if density.conditional else None
    whole = density.sample(60, y)
    x = whole.clone()
    x[:20, 0] = x[20:40, 1] = x[40, :] = NAN
    scored, gaps = scorable(density, Split(x, y), NUMBERS)
    found = log_probs(scored, Split(x, y), samples=32)
    centred = (x if y is None else x - 10 * y[:, None]).double()
    known = Normal(0.0, 1.0).log_prob(centred.nan_to_num()).masked_fill(x.isnan(), 0.0).sum(1)
    assert (found - known)[:41].abs().max() < 0.25 and (found - known)[:41].mean().abs() < 0.03
    torch.testing.assert_close(found[41:], density.log_prob(whole, y)[41:].double())
    result = evaluate_split(density, Split(x, y), NUMBERS, model="m", samples=8)
    assert gaps.rows == result.incomplete == 41 and result.bound == "lower"
    assert "importance sampling integrates missing values out, a lower bound" in result.notes[0]


def test_an_unseen_category_needs_a_probability():
    density = independent(torch.zeros(3, 2))
    spec = replace(SPEC, columns=(replace(COLOURS, novelty=0.0), SPEC.columns[1]))
    with pytest.raises(ValueError, match="column 'colour' has categories that the training data did not have"):
        scorable(density, Split(torch.tensor([[3.0, 0.0]])), spec)


def test_a_classifier_reads_an_unseen_category_as_none():
    spec = SPECS["incomplete table"]
    classifier = tiny("classifier", spec)
    x, y = draw(spec, 64)
    train(classifier, y, x, steps=5)
    unseen, missing = x.clone(), x.clone()
    unseen[:, 2], missing[:, 2] = 3.0, NAN
    scored, gaps = scorable(classifier, Split(unseen, y), spec)
    torch.testing.assert_close(log_probs(scored, Split(unseen, y)), classifier.log_prob(y, missing).double())
    result = evaluate_split(classifier, Split(unseen, y), spec, model="classifier")
    assert gaps.unseen == {"colour": 64} and result.accuracy is not None and result.nats_per_cell is None


def test_fit_on_incomplete_rows_to_disk_and_back(tmp_path):
    spec = SPECS["incomplete table"]
    torch.manual_seed(0)
    x, y = draw(spec, 200)
    data = into_splits("gaps", spec, x, y, seed=0)
    run = loglik.fit("vae", data, out=tmp_path / "run", max_steps=3, progress=False)
    loaded = loglik.load(tmp_path / "run")
    assert loaded.spec.columns[2].novelty == with_novelty(data).spec.columns[2].novelty > 0
    test = data.test.x.clone()
    test[0, 2] = 3.0
    ours, theirs = (evaluate_split(r.density, Split(test), loaded.spec, model="vae", samples=2) for r in (run, loaded))
    assert ours.nats == theirs.nats and math.isfinite(ours.nats)
    assert ours.terms["unseen categories"] < 0
    assert sum(ours.terms.values()) == pytest.approx(ours.nats, abs=1e-4)
    missing = data.test.x.isnan()
    filled = fill(loaded.density, data.test.x, missing)
    assert torch.equal(filled[~missing], data.test.x[~missing]) and filled.isfinite().all()
    whole = loaded.density.sample(10)
    assert whole.isfinite().all()


@pytest.mark.parametrize("family", ["independent", "vae", "flow", "diffusion", "autoregressive"])
def test_every_family_fills_incomplete_rows(family):
    spec = SPECS["incomplete table"]
    torch.manual_seed(0)
    x, _ = draw(spec, 24)
    density = tiny(family, spec).eval()
    density.initialise(x)
    missing = x.isnan()
    filled = fill(density, x, missing)
    assert torch.equal(filled[~missing], x[~missing])
    density.check(filled)
    assert filled.isfinite().all() and density.log_prob(filled).isfinite().all()


def test_an_indicator_is_a_column_like_any_other():
    """Whether a value is missing depends on the value; given the indicator the gap is ignorable."""
    torch.manual_seed(0)
    columns = (
        Column(name="x", type="numeric", missing=True),
        Column(name="x is missing", type="boolean", categories=("no", "yes"), indicates="x"),
    )
    spec = DataSpec(kind="table", event_shape=(2,), columns=columns)
    gone = (torch.rand(300) < 0.3).float()
    x = torch.stack([torch.randn(300).masked_fill(gone == 1, NAN), gone], 1)
    for family in ("independent", "vae", "flow"):
        density = tiny(family, spec)
        train(density, x, steps=30)
        with torch.no_grad():
            log_p = density.log_prob(x, samples=200)
        share = gone.mean().item()
        assert log_p[gone == 1].mean().item() == pytest.approx(math.log(share), abs=0.15), family
        assert 0.1 < density.sample(400)[:, 1].mean() < 0.5


def test_gaps_of_other_data_are_none():
    assert gaps_of(Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)), SPECS["image"]).rows == 0
