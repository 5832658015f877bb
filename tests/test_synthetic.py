"""Synthetic rows: samples with the types, ranges and values of the data, their fidelity and their privacy."""

import json

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from helpers.commands import refused, well
from loglik.data.decode import as_written, decode
from loglik.data.spec import Column
from loglik.tasks.fidelity import column_shapes, pair_trends, two_sample_test
from loglik.tasks.privacy import Nearest, Privacy, area_under_curve, nearest_rows

NUMBER, CODE = Column(name="a", type="numeric"), Column(name="k", type="categorical", categories=("x", "y", "z"))


def table(n: int, seed: int = 0) -> pl.DataFrame:
    """Two prices in cents, one of them often 0, a count, a category and a date."""
    random = np.random.default_rng(seed)
    base = random.normal(size=n)
    price = np.round(20 + 3 * base + random.normal(size=n), 2)
    fee = np.where(random.random(n) < 0.4, 0.0, np.round(np.exp(0.3 * base), 2))
    day = pl.Series(random.integers(0, 90, n)).cast(pl.Int32) + 15000
    kind = np.array(["low", "mid", "high"])[np.digitize(base, [-0.5, 0.5])]
    return pl.DataFrame({
        "price": price, "fee": fee, "count": random.poisson(3, n), "kind": kind, "day": day.cast(pl.Date)
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    table(2500).write_csv(folder / "shop.csv")
    return loglik.fit(
        "autoregressive", folder / "shop.csv", out=folder / "run", max_steps=150, progress=False, size="small"
    )


def test_samples_have_the_types_ranges_and_decimals_of_the_data(run):
    data = pl.read_csv(run.config["source"], try_parse_dates=True)
    drawn = decode(loglik.sample(run, 1500, seed=1), run.spec.columns)
    assert drawn.schema == data.schema
    assert set(drawn["kind"]) <= set(data["kind"])
    for name in ("price", "fee", "count", "day"):
        assert data[name].min() <= drawn[name].min() and drawn[name].max() <= data[name].max()
    assert (drawn["price"].round(2) == drawn["price"]).all()
    assert abs((drawn["fee"] == 0).mean() - 0.4) < 0.06


def test_rows_beyond_the_data_are_drawn_again_unless_kept(run):
    spec = run.spec
    middle = [float(c.low + (c.high - c.low) / 2) if c.low is not None else 1.0 for c in spec.columns]
    loaded = loglik.load(run.path)
    assert [(c.low, c.high) for c in loaded.spec.columns] == [(c.low, c.high) for c in spec.columns]

    class Wide(loglik.Density):
        event_shape, discrete = (5,), False

        def log_prob(self, x, context=None, *, samples=1):
            return -x[:, 0].square()

        def sample(self, n, context=None):
            x = torch.tensor(middle).repeat(n, 1)
            x[:, 0] += 100 * torch.randn(n)
            return x

    inside, outside = (loglik.tasks.Samples(Wide(), spec, 400, beyond=beyond) for beyond in (False, True))
    x, kept = inside.tensor(), outside.tensor()
    price = spec.columns[0]
    assert x[:, 0].min() >= price.low and x[:, 0].max() <= price.high and inside.redrawn > 300
    assert kept[:, 0].max() > price.high and outside.redrawn == 0
    assert torch.equal(inside.tensor(), x)


def test_values_as_they_are_written():
    columns = (
        Column(name="a", type="numeric", decimals=2, missing=True),
        Column(name="a is missing", type="boolean", categories=("false", "true"), indicates="a"),
        Column(name="b", type="integer"),
    )
    rows, kept = as_written(torch.tensor([[1.234, 0.0, 3.0], [5.678, 1.0, 4.0]]), columns)
    assert [column.name for column in kept] == ["a", "b"]
    torch.testing.assert_close(rows, torch.tensor([[1.23, 3.0], [torch.nan, 4.0]]), equal_nan=True)


def test_scores_are_those_of_their_definitions():
    a = np.array([[1.0, 0], [2, 0], [3, 1], [4, 1], [np.nan, 2]])
    b = np.array([[1.0, 0], [2, 1], [7, 1], [8, 1], [9, 1]])
    shapes = column_shapes(a, b, (NUMBER, CODE))
    assert shapes["a"] == pytest.approx(1 - 0.6)  # at 4: 1 and 2 / 5
    assert shapes["k"] == pytest.approx(1 - 0.4)  # 2, 2, 1 and 1, 4, 0 of 5
    # bins of 1 to 4: (1, x), (2, x), (3, y), (4, y), (missing, z) and (1, x), (2, y), 3 times (4, y)
    assert pair_trends(a, b, (NUMBER, CODE))["a", "k"] == pytest.approx(0.4)
    x = np.random.default_rng(0).normal(size=(500, 2))
    numbers = (NUMBER, Column(name="b", type="numeric"))
    trend = pair_trends(x, np.stack([x[:, 0], x[:, 0]], 1), numbers)["a", "b"]
    assert trend == pytest.approx(1 - abs(np.corrcoef(x.T)[0, 1] - 1) / 2)


def test_the_classifier_tells_what_differs():
    random = np.random.default_rng(0)
    columns = (NUMBER, Column(name="b", type="numeric"))
    x, same, other = random.normal(size=(3, 300, 2))
    assert abs(two_sample_test(x, same, columns).auc - 0.5) < 0.08
    other[:, 1] = other[:, 0]
    found = two_sample_test(x, other, columns)
    assert found.auc > 0.8 and min(found.columns.values()) > 0.1
    with pytest.raises(ValueError, match="at least 10 real rows and samples, got 5 and 300"):
        two_sample_test(x[:5], other, columns)


def test_with_few_held_out_rows_the_classifier_learns_from_training_rows():
    random = np.random.default_rng(1)
    columns = (NUMBER, Column(name="b", type="numeric"))
    training, drawn = random.normal(size=(2, 400, 2))
    held = random.normal(size=(60, 2))
    copies = training[random.integers(0, 400, 500)]
    same = two_sample_test(held, np.concatenate([drawn, random.normal(size=(100, 2))]), columns, training=training)
    repeated = two_sample_test(held, copies, columns, training=training)
    assert abs(same.auc - 0.5) < 3 * same.stderr and abs(repeated.auc - 0.5) < 3 * repeated.stderr
    drawn = np.concatenate([drawn, drawn[:100]])
    drawn[:, 1] = drawn[:, 0]
    assert two_sample_test(held, drawn, columns, training=training).auc > 0.8
    with pytest.raises(ValueError, match="at least 10 real rows and samples beside 400 to learn from, got 60 and 405"):
        two_sample_test(held, drawn[:405], columns, training=training)


def test_samples_that_repeat_training_rows_are_found():
    rows = torch.randn(3, 300, 4)
    fair = nearest_rows(rows[2], rows[0], rows[1], [0] * 4)
    assert abs(fair.share - 0.5) < 3 * fair.usual and fair.copies == 0
    copied = nearest_rows(rows[0], rows[0], rows[1], [0] * 4)
    near = nearest_rows(rows[0] + 0.1 * rows[2], rows[0], rows[1], [0] * 4)
    assert copied.share == 1 and copied.copies == 1 and near.share > 0.8 and near.copies == 0


def test_a_good_model_is_not_named_as_memorising(run):
    found = loglik.synthetic_report(run)
    assert not found.memorises and found.privacy_verdict.startswith("no sign that training rows are memorised")
    assert found.fidelity.test.auc < 0.75 and found.fidelity.shape > 0.9
    assert any("AUC" in line for line in found.describe()) and json.dumps(found.to_dict())


def correlated(seed: int, n: int = 200) -> np.ndarray:
    """Six columns that depend on two factors."""
    random = np.random.default_rng(seed)
    factors = random.normal(size=(n, 2)) @ random.normal(size=(2, 6))
    return (factors + 0.5 * random.normal(size=(n, 6))).astype(np.float32)


def overfitted(seed: int) -> loglik.Run:
    """A flow after many steps on 160 rows, without regularisation or early stopping: one validation, at the end."""
    steps = {"max_steps": 400, "validate_every": 400, "patience": 0}
    plain = {"dropout": 0.0, "jitter": 0.0, "weight_decay": 0.0, "depth": 2, "learning_rate": 1e-2}
    return loglik.fit("flow", correlated(seed), seed=seed, progress=False, **steps, **plain)


def test_a_fit_that_overfits_200_rows_is_named_as_memorising():
    found = loglik.synthetic_report(overfitted(0), correlated(0))
    assert found.privacy.model_memorises and "memorises its training rows" in found.privacy_verdict
    assert found.privacy.gap > 6 + 2.6 * found.privacy.gap_stderr


def test_a_fit_of_200_rows_that_stops_early_is_not_named():
    run = loglik.fit("flow", correlated(0), progress=False, depth=2, max_steps=400)
    found = loglik.synthetic_report(run, correlated(0))
    assert not found.memorises and found.privacy.gap < 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_which_fits_of_200_rows_are_named_over_seeds(seed):
    stopped = loglik.fit("flow", correlated(seed), seed=seed, progress=False)
    assert not loglik.synthetic_report(stopped, correlated(seed)).memorises
    assert loglik.synthetic_report(overfitted(seed), correlated(seed)).memorises


def privacy(**values) -> Privacy:
    near = Nearest(share=0.8, expected=0.8, usual=0.01, seen=1.0, copies=0.0, natural_copies=0.0)
    usual = {"train_nats": -3.0, "held_out_nats": -3.1, "gap_stderr": 0.1, "guess": 0.5, "guess_stderr": 0.01}
    return Privacy(**{"rows": 1000, "dims": 4, "nearest": near, **usual, **values})


def test_what_is_named_as_memorising_follows_from_its_definition():
    assert not privacy().memorises and not privacy().overfits
    assert privacy(guess=0.53).overfits and not privacy(guess=0.53).memorises
    assert privacy(held_out_nats=-7.3).model_memorises and not privacy(held_out_nats=-7.2).model_memorises
    assert not privacy(held_out_nats=-9.0, gap_stderr=1.0).model_memorises  # within 2.6 standard errors of a nat each
    assert privacy(held_out_nats=-np.inf, gap_stderr=np.nan).model_memorises

    def near(share, usual=0.01, copies=0.0, natural_copies=0.0):
        return privacy(nearest=Nearest(share, 0.8, usual, 1.0, copies, natural_copies)).samples_memorise

    assert near(0.85) and not near(0.84) and not near(0.85, usual=0.02)  # 10 % near-copies make a share of 0.82
    assert near(0.8, copies=0.02) and not near(0.8, copies=0.02, natural_copies=0.02)


def test_the_fraction_of_near_copies_is_estimated():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    train, held, fresh = x[:800], x[800:1000], x[1000:]
    mixed = fresh.clone()
    mixed[:300] = train[:300] + 1e-3 * fresh[:300]
    fraction, error = nearest_rows(mixed, train, held, [0] * 4).near_copies
    assert abs(fraction - 0.3) < 3 * error and error < 0.15


def test_the_usual_share_is_that_of_training_rows_chosen_at_random():
    random = torch.Generator().manual_seed(0)
    rows, drawn = torch.randn(60, 2, generator=random).round(decimals=0), torch.randn(40, 2, generator=random)
    shares = []
    for _ in range(400):
        order = torch.randperm(60, generator=random)
        found = nearest_rows(drawn, rows[order[:45]], rows[order[45:]], [0, 0])
        shares.append(found.share)
    assert found.expected == 0.75
    assert np.mean(shares) == pytest.approx(0.75, abs=4 * found.usual / 20)
    assert np.std(shares) == pytest.approx(found.usual, rel=0.15)


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    a, b = random.integers(0, 8, 60).astype(float), random.integers(0, 6, 50).astype(float)
    auc, error = area_under_curve(a.tolist(), b.tolist())
    assert auc == pytest.approx(roc_auc_score(np.repeat([1, 0], [60, 50]), np.concatenate([a, b])))
    assert 0.02 < error < 0.08


def test_the_command_writes_the_page_and_says_the_verdicts(run, tmp_path):
    said = well("report", run.path, "-n", "200", "--json", tmp_path / "r.json", "--out", tmp_path / "r.html")
    assert "no sign that training rows are memorised" in said
    assert json.loads((tmp_path / "r.json").read_text())["fidelity"]["n"] == 200
    page = (tmp_path / "r.html").read_text()
    assert "Synthetic rows" in page and "Privacy:" in page
    assert "--out must be an .html file" in refused("report", run.path, "--out", tmp_path / "r.txt")
