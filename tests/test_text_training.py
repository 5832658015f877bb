"""Training on text: windows are a function of (seed, step), resuming is exact, what is written says how it was read."""

import pytest
import torch

import loglik
from loglik import fit
from loglik.data import TextSettings, load
from loglik.training import checkpoint
from loglik.training.batches import Batches
from loglik.training.fabric import make_fabric

TEXT = "".join(f"{i} cats sat on {i % 7} mats; ünder – it all.\n" for i in range(150))
SMALL = {"width": 8, "depth": 1, "heads": 1, "batch_size": 4, "validate_every": 6, "precision": "32-true"}
READ = {"tokenizer": "characters", "window": 12}


class Killed(BaseException):
    pass


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "a.txt"


def rows(batches: Batches, steps: int) -> list[list[int]]:
    return [batches.rows(step).tolist() for step in range(steps)]


def batches_of(path, seed: int) -> Batches:
    data = load(path, text=TextSettings(**READ))
    fabric = make_fabric(loglik.TrainingSettings(accelerator="cpu"))
    return Batches(data.train, batch_size=16, seed=seed, fabric=fabric)


def test_order_is_a_function_of_seed_and_step(path) -> None:
    first, again, other = (batches_of(path, seed) for seed in (3, 3, 4))
    order = rows(first, 6)
    assert again.rows(4).tolist() == order[4]  # without the steps before
    assert rows(other, 6) != order and len({tuple(batch) for batch in order}) == 6
    assert all(0 <= row < len(first.split) for batch in order for row in batch)
    assert first.steps_per_epoch == len(first.split) // (16 * 12)


def test_killed_and_resumed_ends_bit_for_bit(path, tmp_path, monkeypatch) -> None:
    options = {**SMALL, **READ, "max_steps": 18, "dropout": 0.2}
    whole = fit("autoregressive", path, out=tmp_path / "whole", **options)
    real = checkpoint.save

    def save(folder, tensors, state, **settings):
        real(folder, tensors, state, **settings)
        if state.step == 12:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            fit("autoregressive", path, out=tmp_path / "run", **options)
    resumed = fit("autoregressive", path, out=tmp_path / "run", resume=True, **options)
    a, b = resumed.density.state_dict(), whole.density.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert [row["validation_nats"] for row in resumed.history] == [row["validation_nats"] for row in whole.history]
    loaded = loglik.load(tmp_path / "run")
    assert loaded.spec == whole.spec and loaded.spec.tokenizer.characters == "".join(sorted(set(TEXT)))
    with pytest.raises(ValueError, match=r"started with another text: .*'window': 12.*, now .*'window': 13"):
        fit("autoregressive", path, out=tmp_path / "run", resume=True, **{**options, "window": 13})
    assert {p.name for p in (tmp_path / ".tokens").iterdir()} and not (tmp_path / "cache").exists()


def test_a_run_knows_how_its_text_was_read(path, tmp_path) -> None:
    options = {**SMALL, "tokenizer": "bpe", "vocabulary": 300, "window": 10, "split": "70/30/0", "max_steps": 6}
    run = fit("autoregressive", path, out=tmp_path / "run", **options)
    result = loglik.evaluate(loglik.load(tmp_path / "run"), split="validation")
    data = load(path, text=TextSettings(tokenizer="bpe", vocabulary=300, window=10, split="70/30/0"))
    assert result.n == len(data.validation.x.stream) and result.unit == "token"
    with pytest.raises(ValueError, match=r"the run's test split is empty: use split=.validation., or pass data"):
        loglik.evaluate(run)
    (tmp_path / "b.txt").write_text("two cats sat\n" * 30)
    other = loglik.evaluate(run, tmp_path / "b.txt")
    assert other.n == len(run.spec.tokenizer.encode(b"two cats sat\n" * 30))


def test_options_of_text_are_for_text(path) -> None:
    with pytest.raises(ValueError, match="are settings of text, and these are arrays 3"):
        fit("independent", torch.zeros(20, 3), window=5)
    data = load(path, text=TextSettings(**READ))
    with pytest.raises(ValueError, match="were settled when the data were read"):
        fit("independent", data, window=5)
    with pytest.raises(
        ValueError, match=r"unknown option 'windows': .*; text has tokenizer, vocabulary, window, split"
    ):
        fit("independent", path, windows=5)


def test_compare_scores_all_on_the_same_tokens(path, tmp_path) -> None:
    rows = loglik.compare(path, models=["autoregressive"], budget="1s", out=tmp_path / "c", **READ)
    assert [entry.result.model for entry in rows] == ["independent", "xz", "autoregressive"]
    assert len({entry.result.n for entry in rows}) == 1 and all(entry.result.unit == "token" for entry in rows)
    assert rows[2].result.gain == pytest.approx(rows[2].result.nats - rows[0].result.nats)
    assert rows[0].run is not None and "." not in {p.name for p in (tmp_path / "c").iterdir()}
