"""Anomalies: the kernel density, p-values that are uniform on normal rows, flags, and the columns to blame."""

from __future__ import annotations

import math
import sys

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

import loglik
from loglik.cli import main
from loglik.data.dataset import Data, Split
from loglik.density import Bound, Density
from loglik.runs import Run
from loglik.tasks import find_anomalies
from loglik.tasks.anomalies import flagged_at, p_values
from loglik.tasks.blame import blame_of, conditional_log_probs
from loglik.tasks.kernel import KernelDensity

MIXED = (0, 3, 0)  # a number, a category of three, a number


def mixed(n: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    group = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    first = 50 + 10 * rng.normal(size=n)
    return torch.tensor(
        np.stack([first, group, 0.1 * first + group + 0.2 * rng.normal(size=n)], 1), dtype=torch.float32
    )


def brute_force(kernel: KernelDensity, x: torch.Tensor, rows: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """log p of some columns by the definition, a product of kernels for each row of reference."""
    h, total = kernel.bandwidth, torch.zeros(len(x), len(rows), dtype=torch.float64)
    for d in columns:
        a, b = x[:, None, d].double(), rows[None, :, d].double()
        if kernel.codes[d]:
            weight = math.exp(-1 / (h * kernel.scale[d].item()) ** 2)
            total += torch.where(a == b, 1.0, weight).log() - math.log(1 + MIXED[d] * weight)
        else:
            total += torch.distributions.Normal(b / kernel.scale[d], h).log_prob(a / kernel.scale[d])
    return total.logsumexp(1) - math.log(len(rows))


def test_the_kernel_density_is_its_definition() -> None:
    rows, x = mixed(80), mixed(9, seed=1)
    kernel = KernelDensity(rows, MIXED)
    torch.testing.assert_close(kernel.log_prob(x), brute_force(kernel, x, rows, [0, 1, 2]), rtol=1e-5, atol=1e-5)
    rest = torch.stack([brute_force(kernel, x, rows, [e for e in range(3) if e != d]) for d in range(3)], 1)
    torch.testing.assert_close(kernel.column_log_probs(x), kernel.log_prob(x)[:, None] - rest, rtol=1e-4, atol=1e-4)
    others = torch.stack(
        [brute_force(kernel, rows[i : i + 1], rows[torch.arange(80) != i], [0, 1, 2]) for i in range(80)]
    )
    torch.testing.assert_close(kernel.log_prob(rows, own=torch.arange(80)), others[:, 0], rtol=1e-5, atol=1e-5)


def test_the_bandwidth_maximises_the_leave_one_out_likelihood() -> None:
    rows = mixed(60)
    kernel = KernelDensity(rows, MIXED)
    best, own = kernel.log_prob(rows, own=torch.arange(60)).mean(), torch.arange(60)
    for factor in (0.7, 1.4):
        kernel.bandwidth *= factor
        assert kernel.log_prob(rows, own=own).mean() < best
        kernel.bandwidth /= factor


def test_missing_values_count_as_the_mean_of_the_others() -> None:
    from sklearn.metrics.pairwise import nan_euclidean_distances

    torch.manual_seed(0)
    rows, x = torch.randn(50, 4), torch.randn(6, 4)
    rows[::5, 1] = torch.nan
    x[2:4, 0], x[3, 2] = torch.nan, torch.nan
    kernel = KernelDensity(rows, (0,) * 4)
    squares = torch.tensor(nan_euclidean_distances(x / kernel.scale, rows / kernel.scale)) ** 2
    expected = (-squares / (2 * kernel.bandwidth**2)).logsumexp(1)
    found = kernel.log_prob(x) - kernel.log_prob(x)[0] + expected[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (kernel.column_log_probs(x)[2:4, 0] == 0).all()
    assert kernel.log_prob(torch.full((1, 4), torch.nan)).isfinite().all()


def test_ranks_are_those_of_all_rows_given_the_others() -> None:
    rows = torch.cat([mixed(40), mixed(40)[:15]])  # copies, which tie
    x = torch.cat([mixed(5, seed=1), rows[:1], rows[50:51]])
    kernel = KernelDensity(rows, MIXED)
    log_p, less, equal = kernel.ranks(x)
    torch.testing.assert_close(log_p, kernel.log_prob(x))
    for i in range(len(x)):
        together = torch.cat([rows, x[i : i + 1]])
        log_p = torch.stack(
            [brute_force(kernel, together[j : j + 1], together[torch.arange(56) != j], [0, 1, 2])[0] for j in range(56)]
        )
        tie = (log_p[:55] - log_p[55]).abs() < 1e-6
        assert int(((log_p[:55] < log_p[55]) & ~tie).sum()) == int(less[i])
        assert int(tie.sum()) == int(equal[i]) == (2 if i > 4 else 0)
    log_p, own_less, own_equal = kernel.ranks(rows, own=torch.arange(55))
    torch.testing.assert_close(log_p, kernel.log_prob(rows, own=torch.arange(55)))
    assert (own_less + own_equal).max() == 54 and own_less.min() == 0 and own_equal[:15].min() == 1


def test_p_values_are_ranks_at_random_among_equal_scores() -> None:
    larger, equal, known = torch.tensor([0, 2, 4]), torch.tensor([0, 0, 0]), torch.tensor([4, 4, 4])
    assert p_values(larger, equal, known).tolist() == [0.2, 0.6, 1.0]
    many = p_values(torch.full((4000,), 1), torch.full((4000,), 3), torch.full((4000,), 9))
    values, counts = many.unique(return_counts=True)
    assert values.tolist() == [0.2, 0.3, 0.4, 0.5] and stats.chisquare(counts.numpy()).pvalue > 0.01


def test_the_false_discovery_rate_is_that_of_benjamini_and_hochberg() -> None:
    p = torch.tensor(np.random.default_rng(0).uniform(size=200) ** 6)
    for rate in (0.05, 0.1, 0.3):
        expected = stats.false_discovery_control(p.numpy()) <= rate
        assert (flagged_at(p, rate, fdr=True).numpy() == expected).all() and expected.any()
    assert not flagged_at(torch.full((5,), 0.9).double(), 0.1, fdr=True).any()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, pl.DataFrame]:
    """A run of a table, and new rows of the same kind."""
    folder = tmp_path_factory.mktemp("people")

    def frame(n: int, seed: int) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        city = rng.choice(["Lima", "Oslo", "Rome"], n, p=[0.1, 0.6, 0.3])
        height = rng.normal(170, 9, n).round(1)
        heat = np.where(city == "Oslo", 5.0, 19.0) + rng.normal(0, 2, n)
        weight = 0.9 * (height - 100) + rng.normal(0, 6, n)
        return pl.DataFrame({"height": height, "weight": weight.round(1), "city": city, "heat": heat.round(2)})

    frame(1500, 0).write_csv(folder / "people.csv")
    return loglik.fit("independent", folder / "people.csv", progress=False), frame(1500, 1)


@pytest.mark.parametrize("score", ["kernel", "nats", "typicality"])
def test_p_values_of_normal_rows_are_uniform(people, tmp_path, score) -> None:
    run, new = people
    new.write_csv(tmp_path / "new.csv")
    found = find_anomalies(run, tmp_path / "new.csv", score=score, explain=0)
    assert found.known == (1500 if score == "kernel" else 300)
    # both samples vary: the p-values of new rows share the known scores
    distance = stats.kstest(found.frame["p"].to_numpy(), "uniform").statistic
    assert distance < stats.kstwobign.isf(0.01) * math.sqrt(1 / 1500 + 1 / found.known)
    assert found.frame["p"].min() >= 1 / (found.known + 1)


def test_unlikely_rows_come_first_with_the_columns_to_blame(people, tmp_path) -> None:
    run, new = people
    rows = new.head(40).with_row_index("row")
    rows = rows.with_columns(
        heat=pl.when(pl.col("row") == 7).then(50.0).otherwise("heat"),
        weight=pl.when(pl.col("row") == 3).then(160.0).otherwise("weight"),
    ).drop("row")
    rows.write_csv(tmp_path / "new.csv")
    for score in ("auto", "nats"):
        frame = loglik.anomalies(run, tmp_path / "new.csv", score=score, explain=2)
        assert sorted(frame["row"][:2]) == [4, 8] and frame["flagged"][:2].all()
        blamed = dict(zip(frame["row"], frame["columns"], strict=True))
        assert blamed[4].startswith("weight +") and blamed[8].startswith("heat +")
        assert frame["columns"].null_count() == 38
        assert frame["score"].is_sorted(descending=True)


def test_a_runs_own_rows_are_compared_with_the_others(people) -> None:
    run, _ = people
    frame = loglik.anomalies(run, rate=0.02, explain=0)
    assert frame["flagged"].sum() == 30  # 2 % of 1,500: the p-values are the ranks
    assert frame.equals(loglik.anomalies(run, run.config["source"], rate=0.02, explain=0))


def test_a_bound_blames_by_the_kernel_density_without_the_row_itself() -> None:
    run, data = in_memory(held=10)
    run.density = Bounded()
    found = find_anomalies(run, normal=data, score="nats", explain=40)
    assert found.blame.startswith("each column given the others, by the kernel density of the run's rows (that of the")
    assert found.blame.endswith("run is a bound, which has no terms for columns)")
    assert found.frame["columns"][0].startswith("value ")


class Gaussian(Density):
    """Two dependent normal columns."""

    event_shape = (2,)

    def log_prob(self, x, context=None, *, samples=1):  # type: ignore[override]
        covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        return torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)

    def sample(self, n, context=None):  # type: ignore[override]
        raise NotImplementedError


class Bounded(Gaussian):
    """The same, as a bound."""

    bound = Bound.LOWER


def test_conditionals_on_a_grid_are_those_of_a_gaussian() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    x = torch.tensor([[0.3, 0.1], [2.0, -1.0], [-3.0, -2.5]])
    spec = loglik.DataSpec(kind="array", event_shape=(2,))
    expected = torch.distributions.Normal(0.8 * x.flip(1), 0.6).log_prob(x).double()
    torch.testing.assert_close(conditional_log_probs(Gaussian(), x, rows, spec), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("model", ["mixture", "autoregressive:any-order"])
def test_a_density_that_marginalises_blames_by_its_conditionals(people, tmp_path, model) -> None:
    people[1].head(400).write_csv(tmp_path / "known.csv")
    run = loglik.fit(model, tmp_path / "known.csv", progress=False, max_steps=1, size="small")
    data = run.data_for()
    blame = blame_of(run, data, [data.validation])
    assert blame.how == "each column given the others, by the run's density"
    names = [column.name for column in run.spec.columns]
    city = names.index("city")
    x = data.validation.x[:3].clone()
    rows = x.repeat_interleave(3, 0)
    rows[:, city] = torch.arange(3.0).repeat(3)  # every category: their probabilities sum to 1
    total = blame.columns(Split(rows), torch.arange(9))[:, city].exp().view(3, 3).sum(1)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    x[0, 0], x[1, city] = torch.nan, 3.0
    log_p = blame.columns(Split(x), torch.arange(3))
    assert log_p[0, 0] == 0 and log_p[1, city].item() == pytest.approx(math.log(run.spec.columns[city].novelty))
    assert "height" not in blame.name(Split(x), torch.arange(1), 4)[0]


def test_rows_with_gaps_and_unseen_categories_are_scored(people, tmp_path) -> None:
    run, new = people
    rows = new.head(20).with_row_index("row")
    rows = rows.with_columns(
        city=pl.when(pl.col("row") == 2).then(pl.lit("Bern")).otherwise("city"),
        heat=pl.when(pl.col("row") == 5).then(None).otherwise("heat"),
    ).drop("row")
    rows.write_csv(tmp_path / "new.csv")
    found = find_anomalies(run, tmp_path / "new.csv")
    assert found.frame["nats"].null_count() == 0 and found.frame["row"][0] == 3
    assert found.notes == (
        "column 'city': 1 values are categories that the training data did not have, scored with the probability "
        f"{run.spec.columns[2].novelty:.2g}",
    )
    blamed = dict(zip(found.frame["row"], found.frame["columns"], strict=True))
    assert blamed[3].startswith("city +") and "heat" not in blamed[6]
    complete = loglik.fit("flow", run.config["source"], max_steps=2, progress=False)  # a density of complete rows
    found = find_anomalies(complete, tmp_path / "new.csv", explain=0)
    assert found.frame["nats"].is_finite().all()


def in_memory(held: int) -> tuple[Run, Data]:
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    spec = loglik.DataSpec(kind="array", event_shape=(2,))
    data = Data("made", spec, Split(x[held:]), Split(x[:held]), Split(x[:0]))
    return Run(Gaussian(), spec, {"source": None, "label": None, "training": {"seed": 0}}), data


def test_a_run_without_held_out_rows_says_what_to_use() -> None:
    run, data = in_memory(held=0)
    new = Data("new", data.spec, Split(torch.tensor([[0.0, 0.0], [1.0, -3.0]])), Split(data.train.x[:0]), data.test)
    with pytest.raises(ValueError, match=r'no held-out rows .*use score="kernel"'):
        loglik.anomalies(run, new, normal=data, score="nats")
    frame = loglik.anomalies(run, new, normal=data)
    assert frame["row"].to_list() == [2, 1] and frame["columns"][0].startswith("value 1 +")
    run, data = in_memory(held=10)
    assert loglik.anomalies(run, new, normal=data, score="nats")["row"].to_list() == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, "rate must be between 0 and 1, got 1.0"),
        ({"normal": None}, "trained on data in memory: pass its rows as normal="),
    ],
)
def test_errors_say_what_is_wrong(options, message) -> None:
    run, data = in_memory(held=10)
    with pytest.raises(ValueError, match=message):
        loglik.anomalies(run, data, **{"normal": data, **options})


def test_a_text_is_scored_by_its_density_and_blames_tokens(tmp_path) -> None:
    text = "the cat sat on the mat and the dog sat on the log\n" * 60
    (tmp_path / "a.txt").write_text(text)
    run = loglik.fit("independent", tmp_path / "a.txt", window=16, progress=False)
    found = find_anomalies(run)
    assert found.score == "nats" and found.frame["columns"][0].startswith("token ")
    with pytest.raises(ValueError, match='this run has text: use score="nats"'):
        find_anomalies(run, score="kernel")


def test_the_command_writes_a_table_in_the_order_of_the_input_and_a_page(tmp_path, monkeypatch, capsys, people) -> None:
    _, new = people
    new.head(300).write_csv(tmp_path / "people.csv")
    new.tail(50).with_columns(heat=pl.lit(1000.0)).write_csv(tmp_path / "new.csv")
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["loglik", *words])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert end.value.code in (0, None) or printed.err
        return printed.out + printed.err

    command("fit", "people.csv", "--model", "independent", "--out", "run")
    shown = command("anomalies", "run", "new.csv", "--rate", "5%", "--out", "odd.csv")
    assert "50 of 50 rows flagged at 5%: odd.csv, odd.html" in shown and "heat +" in shown
    assert pl.read_csv("odd.csv")["row"].to_list() == list(range(1, 51))
    page = (tmp_path / "odd.html").read_text(encoding="utf-8")
    assert page.count("<tr class=") == 50 and "http" not in page
    assert "no row can be flagged: with 300 rows the smallest p-value is 0.0033" in command(
        "anomalies", "run", "new.csv", "--rate", "0.1%"
    )
    assert command("anomalies", "run", "--rate", "5").startswith("error: --rate must be a share between 0 and 1")
    assert "score must be one of auto, kernel, nats, typicality, got 'knn'" in command(
        "anomalies", "run", "--score", "knn"
    )
    assert command("anomalies", "run", "--out", "x.html").startswith("error: --out must be a .csv file")
