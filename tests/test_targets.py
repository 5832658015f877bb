"""Targets given inputs: reading, training, prediction, in every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import loglik
from loglik.data import as_data, load
from loglik.data.spec import Column, DataSpec
from loglik.data.store import Rows
from loglik.evaluation.predictions import predict_rows, target_scores, target_values
from loglik.networks.columns import ColumnFeatures
from loglik.tasks import inputs_for

FAMILIES = ("independent", "mixture", "flow", "vae", "diffusion", "autoregressive")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sales: two real columns, a category with a gap in its neighbour, an integer count."""
    rng = np.random.default_rng(5)
    size, kind = rng.uniform(20, 200, 400), rng.choice(["flat", "house", "loft"], 400)
    price = np.where(kind == "house", 3.0, 2.0) * size + rng.normal(0, 15, 400)
    rooms = rng.poisson(size / 30)
    lines = ["size,kind,rooms,price"]
    lines += [f"{a:.2f},{b},{c},{d:.3f}" for a, b, c, d in zip(size, kind, rooms, price, strict=True)]
    path = tmp_path_factory.mktemp("targets") / "sales.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(table: Path) -> loglik.Run:
    return loglik.fit("mixture", table, target="price", max_steps=150, members=2, width=32, progress=False)


def test_targets_are_the_event_and_the_other_columns_the_context(table: Path) -> None:
    whole, data = load(table), load(table, target="rooms, price")
    assert [c.name for c in data.spec.columns] == ["rooms", "price"]
    assert [c.name for c in data.spec.inputs] == ["size", "kind"]
    assert torch.equal(data.train.x, whole.train.x[:, [2, 3]])
    assert torch.equal(data.train.y, whole.train.x[:, [0, 1]])
    assert torch.equal(data.split("all").y, whole.split("all").x[:, [0, 1]])
    assert "'rooms', 'price' given 2 inputs" in data.describe()
    assert DataSpec.from_dict(data.spec.to_dict()) == data.spec


def test_a_large_table_gives_the_same_targets_from_a_store(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load(table, target="price")
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1KB")
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path))
    large = load(table, target="price")
    assert isinstance(large.train.x, Rows) and isinstance(large.train.y, Rows)
    assert large.train.x.shape == (320, 1) and large.train.y.shape == (320, 3)
    rows = torch.tensor([5, 0, 7])
    for one, other in zip(small.train.batch(rows), large.train.batch(rows), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(small.split("all").y, large.split("all").y[:])
    options = {"max_steps": 3, "members": 1, "width": 8, "progress": False}
    runs = [loglik.fit("mixture", data, **options) for data in (small, large)]
    weights = [run.density.state_dict() for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "no column 'nothing' for the target"),
        ("price,price", "twice"),
        ("", "name no column"),
        ("size,kind,rooms,price", "all columns are targets"),
    ],
)
def test_wrong_targets_are_refused_in_one_line(table: Path, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(table, target=target)
    assert "\n" not in str(error.value)


def test_a_target_that_is_left_out_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,note\n" + "".join(f"{i},words of row {i}\n" for i in range(100)))
    with pytest.raises(ValueError, match="the target 'note' is left out: it has 100 distinct texts"):
        load(tmp_path / "a.csv", target="note")


def test_a_constant_target_a_label_and_images_are_refused(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "constant.csv"
    path.write_text("a,b\n" + "".join(f"{i},3\n" for i in range(30)))
    with pytest.raises(ValueError, match="'b' is constant, 3 in all 24 rows"):
        load(path, target="b")
    with pytest.raises(ValueError, match="'kind' is a target and the label"):
        load(table, target="kind", label="kind")
    with pytest.raises(ValueError, match="targets are columns of a table"):
        load("digits", target="price")


def test_rows_without_a_target_are_left_out() -> None:
    spec = DataSpec(
        kind="table",
        event_shape=(2,),
        columns=(Column(name="a", type="numeric"), Column(name="b", type="numeric", missing=True)),
    )
    from loglik.data.dataset import Data, Split
    from loglik.data.targets import choose_targets

    x = torch.arange(40.0).view(20, 2)
    x[3, 1] = x[5, 1] = torch.nan
    data = choose_targets(Data("t", spec, Split(x, None, torch.arange(20)), Split(x[:2]), Split(x[:2])), "b")
    assert len(data.train) == 18 and data.notes[-1] == "2 rows without a target are left out"
    assert 3 not in data.train.index.tolist()
    assert not data.spec.columns[0].missing


def test_pairs_of_arrays_have_targets() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    data = as_data((x, y), target="y")
    assert [c.name for c in data.spec.inputs] == ["x1", "x2", "x3"] and data.spec.columns[0].type == "numeric"
    with pytest.raises(ValueError, match="shape"):
        as_data((x, y[:5]), target="y")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["price", "rooms,kind"])
def test_every_family_models_targets(table: Path, family: str, target: str) -> None:
    options = {} if family == "independent" else {"max_steps": 3}
    options |= {"steps": 2} if family == "diffusion" else {}
    run = loglik.fit(family, table, target=target, progress=False, **options)
    result = loglik.evaluate(run)
    assert np.isfinite(result.nats) and set(result.targets) == set(target.split(","))
    predicted = loglik.predict(run)
    assert predicted.height == result.n
    x = loglik.sample(run, 2, inputs=table)
    assert x.shape == (800, len(target.split(",")))


def test_a_mixture_learns_the_target(table: Path, run: loglik.Run) -> None:
    baseline = loglik.fit("independent", table, target="price", progress=False)
    assert loglik.evaluate(run).nats > loglik.evaluate(baseline).nats + 0.7
    scores = loglik.evaluate(run).targets["price"]
    assert scores["rmse"] < 40 and 0.75 <= scores["coverage"] <= 1.0 and scores["crps"] < scores["mae"]


def test_predictions_need_no_targets(table: Path, run: loglik.Run, tmp_path: Path) -> None:
    lines = [",".join(line.split(",")[:3]) for line in table.read_text().splitlines()]
    path = tmp_path / "inputs.csv"
    path.write_text("\n".join(lines) + "\n")
    found = loglik.predict(run, path, quantiles=[0.1, 0.9])
    assert found.columns == ["price_mean", "price_median", "price_std", "price_q10", "price_q90"]
    assert found.height == 400 and found.equals(loglik.predict(run, table, quantiles=[0.1, 0.9]))
    assert (found["price_q10"] < found["price_median"]).all() and (found["price_median"] < found["price_q90"]).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        loglik.predict(run, path, quantiles=[5.0])


def test_a_run_reads_its_target_again(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    fitted = loglik.fit("mixture", table, target="price", out=path, max_steps=2, members=1, width=8, progress=False)
    loaded = loglik.load(path)
    assert loaded.spec == fitted.spec
    assert loglik.evaluate(loaded).nats == loglik.evaluate(fitted, load(table, target="price"), split="test").nats


def test_classifiers_predict_probabilities(table: Path) -> None:
    run = loglik.fit("classifier", table, label="kind", max_steps=3, progress=False)
    found = loglik.predict(run)
    assert found.columns == ["kind", "kind_p_flat", "kind_p_house", "kind_p_loft"]
    total = found.select("kind_p_flat", "kind_p_house", "kind_p_loft").sum_horizontal()
    assert torch.allclose(total.to_torch(), torch.ones(found.height, dtype=torch.float64), atol=1e-5)


def test_predictions_refuse_other_runs(table: Path) -> None:
    whole = loglik.fit("independent", table, progress=False)
    with pytest.raises(ValueError, match="models whole rows"):
        loglik.predict(whole)
    with pytest.raises(ValueError, match="has no inputs"):
        loglik.sample(whole, inputs=table)


def test_a_conditional_density_needs_inputs(run: loglik.Run) -> None:
    with pytest.raises(ValueError, match=r"pass inputs="):
        loglik.sample(run)


def test_draws_and_the_exact_distribution_agree(table: Path, run: loglik.Run) -> None:
    """The summary of draws, as of other families, against the mixture's own marginals."""
    from loglik.evaluation import predictions

    inputs = inputs_for(run, table).split("all").x[:20]
    exact = predict_rows(run.density, run.spec, inputs)
    torch.manual_seed(0)
    drawn = predictions._summary(predictions._draw(run.density, inputs, 4000), run.spec, predictions.INTERVAL)
    std = exact.std
    assert ((drawn.mean - exact.mean).abs() < 0.1 * std).all()
    assert ((drawn.std - std).abs() < 0.15 * std).all()
    assert ((drawn.quantiles - exact.quantiles).abs() < 0.3 * std[:, None]).all()


def test_scores_of_known_distributions() -> None:
    """CRPS and coverage of a density that is right: those of a normal distribution."""

    class Right(loglik.StandardNormal):
        pass

    torch.manual_seed(1)
    spec = DataSpec(
        kind="table",
        event_shape=(1,),
        columns=(Column(name="y", type="numeric"),),
        inputs=(Column(name="x", type="numeric"),),
    )
    from loglik.data.dataset import Split

    values = target_values(Right((1,)), Split(torch.randn(160, 1), torch.zeros(160, 1)), spec)
    scores = target_scores(values, spec)["y"]
    assert scores["crps"] == pytest.approx(1 / np.pi**0.5, abs=0.09)
    assert scores["rmse"] == pytest.approx(1.0, abs=0.2) and scores["coverage"] == pytest.approx(0.9, abs=0.07)
    assert values.below.mean().item() == pytest.approx(0.5, abs=0.07)


def test_column_features_read_every_type() -> None:
    features = ColumnFeatures([0, 3, 0, 40], [True, False, False, False], bins=4)
    x = torch.stack([torch.linspace(-5, 5, 64), torch.arange(64) % 3, torch.full((64,), 7.0), torch.arange(64) % 40], 1)
    features.initialise(x)
    out = features(x)
    assert out.shape == (64, features.outputs) and out.abs().max() < 5
    gap, unseen, far = x[:1].clone(), x[:1].clone(), x[:1].clone()
    gap[0, 0], unseen[0, 1], unseen[0, 3], far[0, 0] = torch.nan, 3, 40, 1e30
    assert features(gap).isfinite().all() and not torch.equal(features(gap), out[:1])
    assert features(unseen).isfinite().all() and features(far).abs().max() < 5
    pieces = features(x)[:, 2:6]
    assert (pieces.diff(dim=0) >= 0).all() and pieces[0].sum() == 0 and pieces[-1].sum() == 4


def test_the_page_shows_predictions_and_calibration(table: Path, run: loglik.Run, tmp_path: Path) -> None:
    from loglik.comparison import evaluate_run
    from loglik.report import write_report

    data = load(table, target="price")
    page = write_report(tmp_path / "report.html", data, [evaluate_run(run, data)], title="prices").read_text()
    assert "<h2>Targets</h2>" in page and "within the 90% interval" in page
    assert "against true values of price" in page and "calibration of mixture" in page
