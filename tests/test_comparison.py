"""compare: the baseline first, a row for each model that fits, the same fields in all, gains on the same examples."""

import copy
import json
import math

import numpy as np
import pytest
import torch

import loglik
from loglik.comparison import Row, best_density, evaluate_run, ranked
from loglik.data import from_arrays
from loglik.data.spec import DataSpec
from loglik.data.tables import from_frame
from loglik.density import StandardNormal
from loglik.evaluation import Result, log_probs, mean_and_stderr, summary, write_json
from loglik.runs import Run
from loglik.training import NotFinite, loop

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, size=120)
IMAGES = (RNG.integers(0, 4, size=(120, 1, 1)) + RNG.integers(0, 2, size=(120, 4, 4))).astype(np.uint8)
BUDGET = {"budget": "60s", "max_steps": 4, "validate_every": 2, "batch_size": 32}
FIELDS = {
    "model",
    "bound",
    "nats",
    "bits_per_dim",
    "stderr",
    "n",
    "params",
    "train_seconds",
    "steps",
    "samples_per_second",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[list[Row], list[str], object]:
    said: list[str] = []
    held = from_arrays(IMAGES, LABELS, name="steps")
    out = tmp_path_factory.mktemp("compare") / "out"
    entries = loglik.compare(held, out=out, samples=2, report=said.append, size="small", **BUDGET)
    return entries, said, out


def test_every_family_and_the_compressors(images) -> None:
    entries, said, out = images
    assert [e.result.model for e in entries] == [
        "independent",
        "xz",
        "png",
        "classifier",
        "autoregressive",
        "flow",
        "vae",
        "diffusion",
    ]
    assert [e.result.bound for e in entries] == ["exact"] * 5 + ["lower"] * 3
    assert [e.run is None for e in entries] == [False, True, True] + [False] * 5
    assert [line.split(":")[0] for line in said] == [e.result.model for e in entries if e.run]
    assert sorted(p.name for p in out.iterdir()) == sorted(e.result.model for e in entries if e.run)
    assert loglik.load(out / "vae").steps == 4


def test_every_row_has_the_fields_of_the_design(images, tmp_path) -> None:
    entries, _, _ = images
    write_json([e.result for e in entries], tmp_path / "new" / "out.json")
    rows = json.loads((tmp_path / "new" / "out.json").read_text())
    assert [row["model"] for row in rows] == [e.result.model for e in entries]
    for row, entry in zip(rows, entries, strict=True):
        assert row.keys() >= FIELDS
        assert row["n"] == 12
        if row["model"] == "classifier":
            assert row["event"] == "y" and row["bits_per_dim"] is None
            assert 0 <= row["accuracy"] <= 1 and 0 <= row["calibration_error"] <= 1
        else:
            assert row["bits_per_dim"] == pytest.approx(-row["nats"] / (16 * math.log(2)))
        if entry.run is None:
            assert row["params"] == row["steps"] == 0 and row["samples_per_second"] is None
        else:
            assert row["samples_per_second"] > 0 and row["train_seconds"] >= 0
        if row["model"] not in ("independent", "xz", "png"):
            assert row["params"] > 0 and row["steps"] == 4
        assert (row["stderr"] is None) == (row["model"] == "xz")


def test_rows_have_ranks_and_notes(images) -> None:
    entries, _, _ = images
    ranked = sorted((e.result for e in entries if e.result.rank is not None), key=lambda r: r.rank)
    assert [r.rank for r in ranked] == [*range(1, 8)]
    assert [r.nats for r in ranked] == sorted((r.nats for r in ranked), reverse=True)
    results = {e.result.model: e.result for e in entries}
    assert results["classifier"].rank is None
    for name in ("classifier", "autoregressive", "flow", "vae", "diffusion"):
        assert results[name].notes[0].startswith("undertrained: it ended after 4 steps"), name
    assert results["independent"].notes == results["png"].notes == ()


def test_a_collapsed_posterior_is_noted(images) -> None:
    entries, _, _ = images
    run = copy.deepcopy(next(e.run for e in entries if e.result.model == "vae"))
    for parameter in run.density.encoder.parameters():
        parameter.detach().zero_()
    result = evaluate_run(run, from_arrays(IMAGES, LABELS), samples=2).result
    assert result.notes[1].startswith("posterior collapse: none of the")


def test_numbers_given_the_label_are_ranked_among_themselves_only() -> None:
    def row(model: str, nats: float, conditional: bool) -> Row:
        density = StandardNormal((2,))
        density.conditional = conditional
        return Row(
            Result(model=model, bound="exact", nats=nats, n=9), Run(density, DataSpec(kind="array", event_shape=(2,)))
        )

    xz = Row(Result(model="xz", bound="exact", nats=-1.0, n=9))
    mixed = [row("a", -3.0, False), xz, row("b", -2.0, True), row("c", math.nan, False)]
    assert [e.result.rank for e in ranked(mixed)] == [2, 1, None, None]
    assert best_density(ranked(mixed)).result.model == "a"
    assert [e.result.rank for e in ranked([row("a", -3.0, True), row("b", -2.0, True)])] == [2, 1]


def test_exact_numbers_take_one_sample(images) -> None:
    entries, _, _ = images
    assert all(e.result.samples == (1 if e.result.bound == "exact" else 2) for e in entries)


def test_gains_are_paired_with_the_baseline(images) -> None:
    entries, _, _ = images
    held = from_arrays(IMAGES, LABELS)
    results = {e.result.model: e.result for e in entries}
    runs = {e.result.model: e.run for e in entries if e.run}
    baseline = log_probs(runs["independent"].density, held.test)
    assert results["independent"].gain is None
    assert results["classifier"].gain is None  # p(y | x) is no gain over p(x)
    for name in ("autoregressive", "flow"):
        differences = log_probs(runs[name].density, held.test, samples=2) - baseline
        gain, stderr = mean_and_stderr(differences)
        assert results[name].gain == pytest.approx(gain, abs=1e-6)
        assert results[name].gain_stderr == pytest.approx(stderr, abs=1e-6)
    for name in ("xz", "png", "autoregressive", "flow", "vae", "diffusion"):
        assert results[name].gain == pytest.approx(results[name].nats - results["independent"].nats, abs=1e-6)
    assert results["xz"].gain_stderr is None


def test_continuous_data_have_no_code_and_no_bits(tmp_path) -> None:
    said: list[str] = []
    entries = loglik.compare(RNG.normal(size=(60, 2)), models=["flow"], report=said.append, **BUDGET)
    assert [e.result.model for e in entries] == ["independent", "flow"]
    assert [e.result.bits_per_dim for e in entries] == [None, None]
    assert all(e.run is not None and e.run.path is None for e in entries)
    write_json([e.result for e in entries], tmp_path / "out.json")
    assert all(row["bits_per_dim"] is None for row in json.loads((tmp_path / "out.json").read_text()))


def test_text_has_bits_per_byte(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 60)
    said: list[str] = []
    entries = loglik.compare(tmp_path / "a.txt", models=["autoregressive", "vae"], report=said.append, **BUDGET)
    assert [e.result.model for e in entries] == ["independent", "xz", "autoregressive"]
    for entry in entries:
        assert entry.result.bits_per_byte == pytest.approx(entry.result.bits_per_dim)
        assert entry.result.unit == "token"
    assert said[0].startswith("vae is left out: vae models images, tables and arrays; for text use autoregressive")


def test_a_mixed_table_and_what_is_left_out() -> None:
    import polars as pl

    frame = pl.DataFrame(
        {
            "size": RNG.normal(size=80),
            "colour": RNG.choice(["red", "green", "blue"], size=80),
            "old": RNG.integers(0, 2, size=80).astype(bool),
            "count": RNG.integers(0, 9, size=80),
        }
    )
    held = from_frame(frame, name="things", source="things")
    said: list[str] = []
    entries = loglik.compare(held, report=said.append, **BUDGET)
    assert [e.result.model for e in entries] == ["independent", "autoregressive", "flow", "vae", "diffusion", "mixture"]
    assert [e.result.bound for e in entries][:2] == ["exact", "exact"]
    left = [line for line in said if "left out" in line]
    assert len(left) == 1 and left[0].startswith("classifier is left out: classifier needs labels")
    assert all(math.isfinite(e.result.nats) for e in entries)


def test_the_chosen_models_must_be_known_and_fit() -> None:
    x = RNG.normal(size=(60, 2))
    with pytest.raises(ValueError, match="unknown model 'gan': use independent, classifier"):
        loglik.compare(x, models=["flow", "gan"], **BUDGET)
    with pytest.raises(ValueError, match=r"none of classifier can take arrays 2"):
        loglik.compare(x, models=["classifier"], **BUDGET)
    assert [e.result.model for e in loglik.compare(x, models=["independent"], **BUDGET)] == ["independent"]
    order = loglik.compare(x, models=["vae", "independent"], **BUDGET)
    assert [e.result.model for e in order] == ["independent", "vae"]


def test_a_model_that_diverges_leaves_the_others(monkeypatch) -> None:
    run = loop.Trainer.run

    def fails(self, bar, resume):
        if type(self.density).__name__ == "VAE":
            raise NotFinite("step 3: the loss is nan")
        return run(self, bar, resume)

    monkeypatch.setattr(loop.Trainer, "run", fails)
    said: list[str] = []
    entries = loglik.compare(IMAGES, models=["vae", "flow"], report=said.append, **BUDGET)
    assert [e.result.model for e in entries if e.run] == ["independent", "flow"]
    assert "vae is left out: step 3: the loss is nan" in said


def test_the_same_seed_gives_the_same_numbers() -> None:
    def numbers(seed: int) -> list[float]:
        return [e.result.nats for e in loglik.compare(IMAGES, models=["vae"], seed=seed, **BUDGET)]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_a_line_and_json_of_a_number_that_is_not_finite(tmp_path) -> None:
    result = Result(model="flow", bound="lower", nats=-math.inf, stderr=math.nan, n=3)
    write_json([result], tmp_path / "a.json")
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["nats"] is None and row["stderr"] is None and row["terms"] == {}
    assert summary(result).startswith("flow: -inf nats (lower)")


def test_an_option_that_a_model_lacks_names_the_model():
    with pytest.raises(ValueError, match="independent has no option 'width'"):
        loglik.compare(torch.randint(5, (40, 3)), width=8)
