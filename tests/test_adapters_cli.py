"""Models of other libraries through the commands: --from KIND and --with KIND:PATH."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import loglik
from helpers.commands import refused, well
from loglik.adapters.loading import KINDS, load, split_name
from loglik.comparison import ranked

pytestmark = pytest.mark.usefixtures("own_folder")

MODELS = """
from dataclasses import dataclass

import torch
from neighbour import STD
from torch import distributions as td, nn

from loglik.adapters import from_distribution

normal = td.Independent(td.Normal(torch.zeros(2).double(), STD), 1)
pixels = td.Independent(td.Normal(torch.full((64,), 8.0), 4.0), 1)
whole = td.MultivariateNormal(torch.zeros(3), torch.eye(3))
nothing = nn.Linear(2, 2)


@dataclass
class Settings:
    width: int = 2


def given(spec):
    shift = 5.0 if spec.classes else 0.0
    means = lambda c: c.double().view(len(c), -1).sum(1, keepdim=True).expand(-1, spec.dims) * shift
    return from_distribution(lambda c: td.Normal(means(c), STD), example=torch.zeros(1, dtype=torch.long))


def targets(spec):
    return from_distribution(lambda c: td.Normal(2 * c[:, :1], STD), example=torch.zeros(1, 1).double())


def fails():
    return 1 / 0
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "neighbour.py").write_text("STD = 2.0\n")
    rng = np.random.default_rng(0)
    x, labels = rng.normal(scale=2.0, size=(60, 2)), rng.integers(2, size=60)
    np.save("x.npy", x)
    np.savez("labelled.npz", x=x + 5.0 * labels[:, None], y=labels)
    rows = "\n".join(f"{a:.4f},{2 * a + b:.4f}" for a, b in x)
    (tmp_path / "table.csv").write_text(f"a,b\n{rows}\n")
    return tmp_path


def nats(*words):
    well("evaluate", *words, "--json", "out.json")
    (result,) = json.loads(Path("out.json").read_text())
    return result


def test_evaluate_gives_the_analytic_nats(here):
    x = np.load("x.npy")
    result = nats("--from", "python", "models.py:normal", "x.npy")
    assert result["nats"] == pytest.approx(stats.norm(0, 2).logpdf(x).sum(1).mean(), abs=1e-5)
    assert (result["model"], result["bound"], result["n"]) == ("python:normal", "exact", 60)
    well("evaluate", "--from", "python", "models.py:normal", "x.npy", "--per-row", "rows.csv", "--split", "test")
    assert len((here / "rows.csv").read_text().splitlines()) == 7


def test_a_module_of_a_package_is_found_in_the_folder(here):
    package = here / "package_for_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("from scipy import stats\nmodel = stats.norm([0, 0], 2)\n")
    result = nats("--from", "python", "package_for_the_test.mine:model", "x.npy")
    assert result["nats"] == pytest.approx(stats.norm(0, 2).logpdf(np.load("x.npy")).sum(1).mean(), abs=1e-5)


def test_labels_and_targets_are_contexts(here):
    x = np.load("x.npy")
    truth = stats.norm(0, 2).logpdf(x).sum(1).mean()
    assert nats("--from", "python", "models.py:given", "labelled.npz")["nats"] == pytest.approx(truth, abs=1e-4)
    well(
        "sample",
        "--from",
        "python",
        "models.py:given",
        "-n",
        40,
        "--like",
        "labelled.npz",
        "--label",
        "1",
        "--out",
        "s.npy",
    )
    assert np.load("s.npy").mean() == pytest.approx(5, abs=1)
    result = nats("--from", "python", "models.py:targets", "table.csv", "--target", "b")
    assert result["nats"] == pytest.approx(stats.norm(0, 2).logpdf(x[:, 1]).mean(), abs=1e-3)
    assert result["targets"]["b"]["rmse"] < 3


def test_images_are_flattened_and_dequantized(here):
    words = ("--from", "python", "models.py:pixels", "digits", "--split", "test")
    result = nats(*words, "--set", "dequantize=true")
    assert result["bound"] == "lower" and 3 < result["bits_per_dim"] < 6
    assert "17 levels, and the model is a density of real numbers: pass --set dequantize=true" in refused(
        "evaluate", *words
    )


def test_the_other_commands_accept_a_model(here):
    model = ("--from", "python", "models.py:normal")
    well("sample", *model, "-n", 7, "--out", "s.npy")
    assert np.load("s.npy").shape == (7, 2)
    well("sample", *model, "-n", 7, "--like", "table.csv", "--out", "s.csv")
    assert (here / "s.csv").read_text().startswith("a,b\n")
    assert "0 fail" in well("verify", *model, "x.npy", "--out", "v", "--only", "normalised,two-samples")
    assert "page" in well("inspect", *model, "x.npy", "--out", "i")
    out = well("anomalies", *model, "x.npy", "--normal", "x.npy", "--score", "nats", "--explain", 0)
    assert "of 60 rows flagged" in out and (here / "anomalies.html").is_file()


def test_a_comparison_has_the_model_beside_ours(here):
    words = ("--with", "python:models.py:normal", "--with", "python:models.py:normal")
    out = well("compare", "x.npy", "--models", "independent", "--budget", "1s", *words, "--out", "c")
    results = json.loads((here / "c" / "comparison.json").read_text())
    assert [row["model"] for row in results if row["model"] != "independent"] == ["python:normal", "python:normal (2)"]
    assert {row["rank"] for row in results} == {1, 2, 3} and results[-1]["gain"] is not None
    page = (here / "c" / "report.html").read_text()
    assert "python:normal" in page and "python:normal, trained elsewhere: whether it has seen these rows" in out
    assert not (here / "c" / "python-normal").exists()


def test_a_conditional_model_has_no_rank(here):
    x, y = (np.load("labelled.npz")[name] for name in "xy")
    rows = loglik.compare((x, y), models=["independent"], budget="1s", with_={"given": _given(x, y)})
    assert [row.result.rank for row in rows] == [1, None] and rows[1].conditional


def _given(x, y):
    means = torch.tensor([0.0, 5.0]).double()
    return loglik.adapters.from_distribution(
        lambda c: torch.distributions.Normal(means[c][:, None].expand(-1, 2), 2.0), example=torch.zeros(1).long()
    )


def test_densities_in_memory_stand_in_a_comparison():
    x = torch.randn(80, 2)
    normal = torch.distributions.Normal(torch.zeros(2), 1.0)
    run = loglik.fit("independent", x)
    rows = loglik.compare(x, models=["independent"], budget="1s", with_={"truth": normal, "mine": run})
    assert [row.result.model for row in rows] == ["independent", "truth", "mine"] and ranked(rows)[1].result.rank == 1
    test = rows[1].result
    assert test.train_seconds == 0 and test.steps == 0 and test.bound == "exact"
    with pytest.raises(ValueError, match=r"wrong: the model is a density of events of shape \(3,\), and the data are"):
        loglik.compare(x, with_={"wrong": torch.distributions.Normal(torch.zeros(3), 1.0)})
    with pytest.raises(ValueError, match="other is of other data: arrays 3, and the data are arrays 2"):
        other = loglik.fit("independent", torch.randn(40, 3))
        loglik.compare(x, models=["independent"], budget="1s", with_={"other": other})


def test_evaluate_accepts_a_model_as_it_is():
    result = loglik.evaluate(torch.distributions.Normal(torch.zeros(2), 1.0), torch.zeros(9, 2))
    assert result.nats == pytest.approx(-math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate --from python models.py:normal", "--from needs DATA"),
        ("evaluate --from python models.py x.npy", "needs FILE.py:NAME or package.module:NAME, got 'models.py'"),
        ("evaluate --from python gone.py:normal x.npy", "gone.py: no such file"),
        ("evaluate --from python no_such_package:normal x.npy", "fails: ModuleNotFoundError"),
        ("evaluate --from python models.py:other x.npy", "has no 'other': it has"),
        ("evaluate --from python models.py:fails x.npy", "models.py:fails fails: ZeroDivisionError: division by zero"),
        ("evaluate --from python models.py:nothing x.npy", "which has forward, is no density that is known here"),
        ("evaluate --from python models.py:Settings x.npy", "pass an object of it"),
        ("evaluate --from python models.py:whole x.npy", "of events of shape (3,), and the data are arrays 2"),
        ("evaluate --from python models.py:given x.npy", "this density needs labels"),
        ("evaluate --from python models.py:normal x.npy --set size=3", "has no setting 'size'"),
        ("evaluate --from nothing models.py:normal x.npy", "there is no adapter 'nothing': choose"),
        ("evaluate models.py:normal x.npy --set dequantize=true", "--set goes with --from KIND"),
        ("evaluate --from python models.py:normal table.csv --target b", "shape (2,), and the data are target 'b'"),
        ("sample --from python models.py:given", "makes a model of the spec of data: pass data (--like DATA)"),
        ("sample run --like x.npy", "--like goes with --from KIND"),
        ("verify --from python models.py:normal", "--from needs DATA"),
        ("anomalies --from python models.py:normal x.npy", "--from needs --normal DATA too"),
        ("predict --from python models.py:normal x.npy", "models whole rows"),
        ("compare x.npy --with python:models.py:normal,nope=1 --out c", "has no setting 'nope'"),
        ("compare x.npy --with python:models.py:normal,method=ode --out c", "this density has none"),
        ("compare x.npy --with models.py", "expected KIND:PATH with a kind among"),
        ("compare x.npy --with python:models.py:whole --out c", "of events of shape (3,)"),
    ],
)
def test_wrong_use_is_one_line(here, words, message):
    assert message in refused(*words.split())


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"python"}))
def test_each_kind_refuses_a_folder_that_is_none(here, kind):
    assert "nothing" in refused("evaluate", "--from", kind, "nothing", "digits", "--split", "test")
    (here / "empty").mkdir()
    assert "empty" in refused("evaluate", "--from", kind, "empty", "digits", "--split", "test")


def test_load_gives_a_run_in_python(here):
    run = load("python", "models.py:normal")
    assert run.spec.event_shape == (2,) and run.model == "python:normal" and not run.density.training
    assert loglik.evaluate(run, np.load("x.npy")).n == 60
    with pytest.raises(ValueError, match="trained elsewhere: pass data"):
        loglik.evaluate(run)
    assert split_name("python:a:b") == ("python", "a:b")
