"""The estimators of scikit-learn's interface pass its checks, and work in its pipelines and searches."""

import json
import pickle

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  makes the next import possible
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import loglik
from loglik.sklearn import (
    DensityClassifier,
    DensityEstimator,
    DensityImputer,
    DensityRegressor,
    LatentEncoder,
    OutlierDetector,
)

FEW = {"max_steps": 5, "random_state": 0}
SMALL = {"options": {"width": 8, "depth": 1}, "max_steps": 2, "random_state": 0}
NOT_RUN = {"check_array_api_input": "needs the environment variable SCIPY_ARRAY_API, before scipy is imported"}


CLASSIFIER = {"learning_rate": 3e-3, "warmup": 5, "width": 64}
REGRESSOR = {"learning_rate": 1e-2, "warmup": 5, "width": 32, "members": 2}


@parametrize_with_checks([DensityEstimator(**SMALL)], expected_failed_checks=lambda estimator: NOT_RUN)
@pytest.mark.filterwarnings("ignore:.*was fitted with feature names:UserWarning")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        OutlierDetector(random_state=0),
        OutlierDetector("flow", **SMALL),
        LatentEncoder(**SMALL),
        DensityImputer(**SMALL),
        DensityClassifier(max_steps=40, options=CLASSIFIER, random_state=0),
        DensityRegressor(max_steps=60, options=REGRESSOR, random_state=0),
    ],
    expected_failed_checks=lambda estimator: NOT_RUN,
)
@pytest.mark.filterwarnings("ignore:.*was fitted with feature names:UserWarning")
def test_scikit_learns_checks_of_the_others(estimator, check):
    check(estimator)


@pytest.fixture
def table():
    """Return a data frame with a column of each type, and the classes that one of them decides."""
    import polars as pl

    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "size": rng.normal(size=200),
            "count": rng.integers(0, 5, 200),
            "colour": rng.choice(["red", "blue", "green"], 200),
            "new": rng.random(200) < 0.3,
        }
    )
    return frame, np.where(frame["size"] > 0, "large", "small")


def as_frame(frame, library):
    if library == "polars":
        return frame
    module = pytest.importorskip(library)
    if library == "pyarrow":
        return frame.to_arrow()
    return module.DataFrame({name: frame[name].to_list() for name in frame.columns})


@pytest.mark.parametrize("library", ["polars", "pandas", "pyarrow"])
def test_a_data_frame_keeps_its_types(table, library):
    frame = as_frame(table[0], library)
    estimator = DensityEstimator(**FEW).fit(frame)
    assert list(estimator.feature_names_in_) == ["size", "count", "colour", "new"]
    assert [c.type for c in estimator.spec_.columns] == ["numeric", "integer", "categorical", "boolean"]
    np.testing.assert_array_equal(
        estimator.score_samples(frame), DensityEstimator(**FEW).fit(table[0]).score_samples(table[0])
    )
    drawn = estimator.sample(50)
    assert type(drawn) is type(frame)
    assert set(map(str, drawn["colour"].unique())) <= {"red", "blue", "green"}
    assert estimator.score_samples(drawn).shape == (50,)


def test_categories_and_frames_in_every_estimator(table):
    frame, y = table
    classifier = DensityClassifier(max_steps=100, random_state=0).fit(frame, y)
    assert classifier.score(frame, y) > 0.9 and list(classifier.classes_) == ["large", "small"]
    latents = LatentEncoder(2, **FEW).set_output(transform="polars").fit(frame)
    z = latents.transform(frame)
    assert z.columns == ["latentencoder0", "latentencoder1"]
    assert latents.inverse_transform(z)["colour"].is_in(["red", "blue", "green"]).all()
    assert set(OutlierDetector(**FEW).fit_predict(frame)) <= {-1, 1}


def test_scores_are_the_densitys_own():
    x = load_iris().data
    estimator = DensityEstimator(max_steps=20, random_state=3).fit(x)
    own = estimator.run_.density.log_prob(x)
    np.testing.assert_allclose(estimator.score_samples(x), own.detach().numpy(), atol=1e-4)
    assert estimator.score(x) == pytest.approx(estimator.score_samples(x).mean())


@pytest.mark.parametrize("model", ["flow", "vae"])
def test_the_same_seed_gives_the_same_model(model, table):
    first, second = (DensityEstimator(model, **FEW).fit(table[0]) for _ in range(2))
    other = DensityEstimator(model, max_steps=5, random_state=1).fit(table[0])
    np.testing.assert_array_equal(first.score_samples(table[0]), second.score_samples(table[0]))
    assert first.sample(5).equals(second.sample(5)) and first.sample(5).equals(first.sample(5))
    assert not first.sample(5).equals(first.sample(5, random_state=7))
    assert np.abs(first.score_samples(table[0]) - other.score_samples(table[0])).max() > 1e-3


def test_a_fit_leaves_no_trace(own_folder, tmp_path, capfd):
    state = np.random.get_state()[1].copy()
    DensityEstimator(**FEW).fit(load_iris().data)
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_bayes_rule_with_densities_of_the_classes():
    rng = np.random.default_rng(0)
    y = rng.random(2000) < 0.25
    x = rng.normal(size=(2000, 1)) + 2.0 * y[:, None]
    classifier = DensityClassifier("flow", max_steps=150, options={"depth": 1}, random_state=0).fit(x, y)
    at = np.linspace(-1, 3, 9)[:, None]
    truth = 0.25 * np.exp(-0.5 * (at - 2) ** 2) / (0.25 * np.exp(-0.5 * (at - 2) ** 2) + 0.75 * np.exp(-0.5 * at**2))
    assert np.abs(classifier.predict_proba(at)[:, 1] - truth[:, 0]).mean() < 0.05
    with pytest.raises(ValueError, match=r"independent has no densities p\(x \| class\): use classifier"):
        DensityClassifier("independent").fit(x, y)


@pytest.mark.parametrize(("model", "options"), [("independent", {}), ("flow", {"depth": 2})])
def test_outliers_are_the_least_likely_rows(model, options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    detector = OutlierDetector(model, max_steps=100, options=options, random_state=0).fit(x)
    odd = np.stack([np.linspace(-2, 2, 20), np.linspace(2, -2, 20)], 1)[[0, 1, 2, -3, -2, -1]]
    new = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    assert (detector.predict(odd) == -1).all() and (detector.predict(new) == -1).mean() < 0.05
    scores = np.concatenate([detector.decision_function(new), detector.decision_function(odd)])
    assert roc_auc_score(np.repeat([1, 0], [500, 6]), scores) > 0.99
    np.testing.assert_allclose(detector.decision_function(new), detector.score_samples(new) - detector.offset_)
    with pytest.raises(ValueError, match=r"contamination must be auto or a number in \(0, 0.5\], got 0.7"):
        OutlierDetector(contamination=0.7).fit(x)
    with pytest.raises(ValueError, match="scoring must be one of auto, kernel, nats, typicality, got 'knn'"):
        OutlierDetector(scoring="knn").fit(x)


def test_an_outlier_detectors_default_is_the_score_of_anomalies():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(200, 3)), rng.normal(size=(40, 3))
    detector = OutlierDetector(contamination=0.1, random_state=0).fit(x)
    found = loglik.anomalies(detector.run_, new.astype(np.float32), normal=x.astype(np.float32), explain=0).sort("row")
    np.testing.assert_allclose(detector.score_samples(new), -found["score"].to_numpy(), rtol=1e-5)
    own = loglik.anomalies(detector.run_, normal=x.astype(np.float32), explain=0).sort("row")
    np.testing.assert_allclose(detector.score_samples(x), -own["score"].to_numpy(), rtol=1e-5)  # given the others
    assert (detector.predict(x) == -1).sum() == 20
    usual = OutlierDetector(scoring="typicality", random_state=0).fit(x)
    log_p = OutlierDetector(scoring="nats", random_state=0).fit(x).score_samples(new)
    assert np.abs(usual.score_samples(new)).max() < np.ptp(log_p) and (usual.score_samples(new) <= 0).all()


@pytest.mark.parametrize(
    "estimator",
    [DensityEstimator("mixture", **FEW), DensityEstimator("flow", **FEW), OutlierDetector(), LatentEncoder(2, **FEW)],
    ids=lambda estimator: f"{type(estimator).__name__}-{estimator.model}",
)
def test_missing_values_dates_and_unseen_categories(estimator, table):
    import datetime

    import polars as pl

    frame, _ = table
    day = pl.Series("day", [datetime.date(2020, 1, 1) + datetime.timedelta(days=5 * i) for i in range(200)])
    frame = frame.with_columns(day, size=pl.when(pl.arange(0, 200) % 5 != 0).then("size"))
    estimator = clone(estimator).fit(frame)
    method = estimator.transform if isinstance(estimator, LatentEncoder) else estimator.score_samples
    assert np.isfinite(method(frame)).all()
    assert np.isfinite(method(frame.with_columns(colour=pl.lit("pink")))).all()
    if isinstance(estimator, DensityEstimator):
        assert estimator.sample(3).schema == frame.schema


def test_a_classifier_reads_unseen_categories_as_missing(table):
    import polars as pl

    frame, y = table
    gaps = frame.with_columns(colour=pl.when(pl.arange(0, 200) % 5 != 0).then("colour"))
    classifier = DensityClassifier(**FEW).fit(gaps, y)
    unseen, missing = (classifier.predict_proba(gaps.with_columns(colour=pl.lit(c, pl.String))) for c in ("pink", None))
    np.testing.assert_array_equal(unseen, missing)
    assert np.isfinite(unseen).all()


def test_imputation_of_dates(table):
    import datetime

    import polars as pl

    size = table[0]["size"]
    day = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(100 * abs(s))) for s in size]
    frame = table[0].with_columns(day=pl.Series(day), text=pl.Series([d.strftime("%d/%m/%Y") for d in day]))
    gaps = frame.with_columns(
        day=pl.when(pl.arange(0, 200) % 5 != 0).then("day"), text=pl.when(pl.arange(0, 200) % 7 != 0).then("text")
    )
    filled = DensityImputer(**FEW).fit(gaps).transform(gaps)
    assert filled.schema == frame.schema and filled.null_count().sum_horizontal().item() == 0
    assert filled["text"].str.to_date("%d/%m/%Y").is_between(min(day), max(day)).all()


def test_samples_come_from_the_density():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(1000, 1))
    estimator = DensityEstimator(max_steps=100, options={"depth": 1}, random_state=0).fit(x)
    assert kstest(estimator.sample(1000)[:, 0], "norm", (x.mean(), x.std())).pvalue > 0.001


def test_latents_and_back():
    x = load_wine().data[:, [0, 5, 6, 11, 12]]
    encoder = LatentEncoder(3, max_steps=300, options={"width": 64}, random_state=0).fit(x)
    back = encoder.inverse_transform(encoder.transform(x))
    assert back.shape == x.shape and (((back - x) ** 2).mean(0) < 0.8 * x.var(0)).all()
    with pytest.raises(ValueError, match="X has 2 latents, but LatentEncoder has 3"):
        encoder.inverse_transform(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="a flow has no latents that LatentEncoder knows: use model='vae'"):
        LatentEncoder(model="flow").fit(x)


def test_pipelines_and_searches():
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), DensityClassifier(max_steps=60, random_state=0))
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.7
    assert pipeline.fit(x, y).predict_log_proba(x).shape == (150, 3)
    grid = {"model": ["independent", "flow"]}
    search = GridSearchCV(DensityEstimator(**FEW), grid, cv=2).fit(x)
    assert search.best_params_["model"] == "flow"
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    halving = HalvingGridSearchCV(
        DensityEstimator(**SMALL), {"size": ["small", "medium"]}, resource="max_steps", max_resources=4, cv=2
    ).fit(x)
    assert halving.best_estimator_.run_.steps in (1, 2, 3, 4)
    latents = make_pipeline(StandardScaler(), LatentEncoder(2, **FEW), DensityClassifier(**FEW)).fit(x, y)
    assert latents.predict(x).shape == (150,)


@pytest.mark.parametrize(
    ("estimator", "method"),
    [
        (DensityEstimator(**FEW), "score_samples"),
        (OutlierDetector(contamination=0.1, **FEW), "decision_function"),
        (OutlierDetector("flow", scoring="typicality", **FEW), "decision_function"),
        (DensityClassifier(**FEW), "predict_proba"),
        (DensityRegressor(**FEW), "predict_std"),
        (DensityImputer(**FEW), "transform"),
        (LatentEncoder(2, options={"width": 32}, max_steps=5, random_state=np.random.RandomState(0)), "transform"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_saved_and_loaded(estimator, method, table, tmp_path):
    frame, y = table
    y = frame["size"].to_numpy() if isinstance(estimator, DensityRegressor) else y
    estimator = clone(estimator).fit(frame, y)
    estimator.save(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {
        ".yaml",
        ".safetensors",
        ".csv",
        ".json",
        ".sha256",
    }
    loaded = type(estimator).load(tmp_path / "saved")
    copied = pickle.loads(pickle.dumps(estimator))
    for other in (loaded, copied):
        np.testing.assert_array_equal(getattr(estimator, method)(frame), getattr(other, method)(frame))
    assert loaded.options == estimator.options and list(loaded.feature_names_in_) == list(frame.columns)
    assert clone(loaded).fit(frame, y).run_.steps == estimator.run_.steps
    assert loglik.load(tmp_path / "saved").spec == estimator.spec_
    with pytest.raises(FileExistsError, match="exists and is not empty: choose another path"):
        estimator.save(tmp_path / "saved")


def test_refuses_what_is_not_saved_here(tmp_path):
    x = load_iris().data
    estimator = DensityEstimator(**FEW)
    with pytest.raises(NotFittedError):
        estimator.save(tmp_path / "new")
    estimator.fit(x).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved is a DensityEstimator: read it with DensityEstimator.load"):
        LatentEncoder.load(tmp_path / "saved")
    file = tmp_path / "saved" / "estimator.json"
    saved = json.loads(file.read_text())
    for change, message in (
        ({"arguments": {"depth": 3}}, "DensityEstimator has no argument 'depth'"),
        ({"learned": {"x": {"dtype": "object", "values": [[1]]}}}, "is damaged"),
        ({"learned": {"fit": "no method any more"}}, "'fit' is nothing that an estimator learns"),
        ({"more": 1}, "is damaged"),
    ):
        file.write_text(json.dumps({**saved, **change}))
        with pytest.raises(ValueError, match=message):
            DensityEstimator.load(tmp_path / "saved")
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no estimator.json: give a folder that DensityEstimator.save wrote"
    ):
        DensityEstimator.load(tmp_path / "saved")


def test_refuses_other_columns_and_values(table):
    import polars as pl

    frame, _ = table
    estimator = DensityEstimator(**FEW).fit(frame)
    for other, message in (
        (frame.drop("size"), "Feature names seen at fit time, yet now missing"),
        (frame.rename({"size": "length"}), "Feature names unseen at fit time"),
        (frame.select("count", "size", "colour", "new"), "must be in the same order"),
        (frame.with_columns(count=pl.col("count") + 0.5), "column 'count': .* is not an integer"),
        (frame.head(0), "0 sample"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.score_samples(other)
    assert np.isfinite(estimator.score_samples(frame.head(3).with_columns(size=pl.lit(float("nan"))))).all()
    for wrong, message in (
        (frame.head(1), "1 sample"),
        (
            frame.with_columns(colour=pl.lit(None, pl.String)),
            "column 'colour' of X cannot be modelled: it has no values",
        ),
        (np.full((20, 2), np.inf), "Input X contains infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            DensityEstimator(**FEW).fit(wrong)
    for arguments, message in (
        ({"model": "vea"}, "unknown model 'vea': use"),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"max_steps": 0}, "max_steps must be above 0, got 0"),
        ({"options": {"hue": 1}}, "unknown option 'hue'"),
    ):
        with pytest.raises(ValueError, match=message):
            DensityEstimator(**arguments).fit(frame)


def test_one_feature_and_few_rows():
    x = np.arange(4.0)[:, None]
    estimator = DensityEstimator(**FEW).fit(x)
    assert np.isfinite(estimator.score_samples(x)).all() and estimator.sample(3).shape == (3, 1)


def test_a_regressor_knows_the_noise():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(1500, 1))
    mean, std = np.sin(2 * x[:, 0]), 0.1 + 0.2 * (x[:, 0] > 0)
    y = mean + std * rng.normal(size=1500)
    regressor = DensityRegressor(max_steps=400, options=REGRESSOR, random_state=0).fit(x[:1000], y[:1000])
    new, truth = x[1000:], y[1000:]
    assert regressor.score(new, truth) > 0.85
    assert np.corrcoef(regressor.predict_std(new), std[1000:])[0, 1] > 0.85
    low, high = regressor.predict_quantiles(new, [0.05, 0.95]).T
    assert 0.85 < ((low <= truth) & (truth <= high)).mean() < 0.95
    drawn = regressor.sample(new, 200)
    assert drawn.shape == (500, 200) and np.abs(drawn.mean(1) - regressor.predict(new)).mean() < 0.05
    exact = -0.5 * ((truth - mean[1000:]) / std[1000:]) ** 2 - np.log(std[1000:] * np.sqrt(2 * np.pi))
    assert regressor.log_prob(new, truth).mean() == pytest.approx(exact.mean(), abs=0.12)
    with pytest.raises(ValueError, match="quantiles are levels between 0 and 1, got 95"):
        regressor.predict_quantiles(new, [95])


def test_several_targets_mixed_inputs_and_gaps(table):
    import polars as pl

    frame, y = table
    y = np.stack([frame["size"].to_numpy(), frame["count"].to_numpy()], 1)
    inputs = frame.with_columns(size=pl.when(pl.arange(0, 200) % 5 != 0).then("size"), colour=pl.lit("red"))
    inputs = inputs.with_columns(colour=pl.when(pl.arange(0, 200) % 7 != 0).then(pl.lit("red")).otherwise(None))
    regressor = DensityRegressor(**FEW).fit(inputs, y)
    assert [c.type for c in regressor.spec_.columns] == ["numeric", "integer"]
    assert [c.missing for c in regressor.spec_.inputs] == [True, False, True, False]
    assert regressor.predict(inputs).shape == (200, 2) and regressor.predict_quantiles(inputs).shape == (200, 3, 2)
    assert regressor.sample(inputs, 4).shape == (200, 4, 2) and np.isfinite(regressor.log_prob(inputs, y)).all()
    same = DensityRegressor(**FEW).fit(inputs, y[:, 1].astype(float))
    assert same.spec_.columns[0].type == "integer" and same.predict(inputs).shape == (200,)


def test_imputation_uses_the_other_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 1)) + 0.2 * rng.normal(size=(600, 3))
    hidden = rng.random((300, 3)) < 0.2
    hidden[hidden.all(1), 0] = False
    gaps = np.where(hidden, np.nan, x[300:])
    imputer = DensityImputer(max_steps=60, options={"width": 64}, random_state=0).fit(x[:300])
    filled = imputer.transform(gaps)
    np.testing.assert_array_equal(filled[~hidden], x[300:][~hidden])
    error = np.sqrt(np.mean((filled - x[300:])[hidden] ** 2))
    alone = np.sqrt(np.mean((x[:300].mean(0) - x[300:])[hidden] ** 2))
    assert error < 0.7 * alone
    np.testing.assert_array_equal(filled, imputer.transform(gaps))
    drawn = imputer.set_params(sample_posterior=True).transform(gaps)
    assert np.isfinite(drawn).all() and not np.array_equal(drawn, filled)
    with pytest.raises(ValueError, match="n_draws must be an integer above 0, got 0"):
        DensityImputer(n_draws=0).fit(x)


def test_imputation_by_any_order_is_the_conditional_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 1)) + 0.2 * rng.normal(size=(600, 3))
    gaps = x[300:].copy()
    gaps[:, 2] = np.nan
    imputer = DensityImputer("autoregressive:any-order", max_steps=20, random_state=0).fit(x[:300])
    filled = imputer.transform(gaps)[:, 2]
    truth = x[300:, :2].sum(1) / (2 + 0.2**2)  # of a sum of two equally good measurements
    assert np.abs(filled - truth).mean() < 0.08
    drawn = imputer.set_params(sample_posterior=True).transform(gaps)[:, 2]
    assert np.std(drawn - truth) > 0.15


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_imputation_of_a_data_frame(table, library):
    import polars as pl

    gaps = table[0].with_columns(
        count=pl.when(pl.arange(0, 200) % 5 != 0).then("count"),
        colour=pl.when(pl.arange(0, 200) % 7 != 0).then("colour"),
    )
    frame = as_frame(gaps, library)
    filled = DensityImputer(**FEW).fit(frame).transform(frame)
    assert type(filled) is type(frame) and list(filled.columns) == gaps.columns
    back = pl.DataFrame({name: list(filled[name]) for name in gaps.columns})
    assert back.null_count().sum_horizontal().item() == 0
    assert back["colour"].is_in(["red", "blue", "green"]).all() and back["count"].is_between(0, 4).all()
    known = pl.Series([i % 7 != 0 for i in range(200)])
    assert back["colour"].filter(known).equals(gaps["colour"].filter(known)) and back["size"].equals(gaps["size"])
    empty = frame[:3].assign(colour=None) if library == "pandas" else frame[:3].with_columns(colour=pl.lit(None))
    assert all(v in ("red", "blue", "green") for v in DensityImputer(**FEW).fit(frame).transform(empty)["colour"])
    with pytest.raises(ValueError, match="column 'colour' of X cannot be modelled: it has no values; leave"):
        DensityImputer(**FEW).fit(empty)
