"""Callbacks can stop a training and change nothing else; loggers' files have the numbers of the training."""

import sys
from types import ModuleType

import pytest
import torch

from helpers.commands import refused
from loglik import fit
from loglik.runs import METRICS
from loglik.training import Callback, MLflowLogger, StopTraining, TensorBoardLogger, WandbLogger

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0])
SETTINGS = {"max_steps": 30, "validate_every": 10, "seed": 0, "width": 8, "depth": 1}


class Recorder(Callback):
    """Records what it is told, and meddles as far as a reader may: it draws, evaluates and samples."""

    def __init__(self) -> None:
        self.steps, self.validations, self.ends = [], [], []

    def on_step(self, step, metrics, run):
        torch.rand(3)
        with torch.no_grad():
            run.density.log_prob(X[:5])
        self.steps.append((step, dict(metrics)))

    def on_validation(self, step, metrics, run):
        assert run.history[-1] == metrics and not run.density.training
        run.density.sample(2)
        self.validations.append((step, dict(metrics)))

    def on_end(self, step, metrics, run):
        self.ends.append((step, dict(metrics), run))


def weights(run):
    return run.density.state_dict()


def assert_same_weights(one, other):
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.0}], ids=["average", "no average"])
@pytest.mark.parametrize("model", ["flow", "vae"])
def test_a_callback_changes_no_weight(model, options):
    recorder = Recorder()
    told = fit(model, X, callbacks=[recorder], **SETTINGS, **options)
    assert_same_weights(told, fit(model, X, **SETTINGS, **options))
    assert [step for step, _ in recorder.steps] == list(range(1, 31))
    assert set(recorder.steps[0][1]) == {"loss", "learning_rate", "time"}
    assert [step for step, _ in recorder.validations] == [10, 20, 30]
    assert [dict(row) for _, row in recorder.validations] == told.history
    ((step, metrics, run),) = recorder.ends
    assert step == 30 and metrics == told.history[-1] and set(metrics) == set(METRICS) and run is told


def test_batch_norm_is_not_moved_by_a_callback():
    y = (X[:, 0] > 0).long()
    settings = {**SETTINGS, "norm": "batch", "ema_decay": 0.0}

    class Evaluates(Callback):
        def on_step(self, step, metrics, run):
            run.density.probabilities(X[:50])

    assert_same_weights(
        fit("classifier", (X, y), callbacks=[Evaluates()], **settings), fit("classifier", (X, y), **settings)
    )


class Stop(Callback):
    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    def on_step(self, step, metrics, run):
        if step == self.at and self.how == "raise":
            raise StopTraining
        return step == self.at and self.how == "step"

    def on_validation(self, step, metrics, run):
        return step >= self.at and self.how == "validation"


@pytest.mark.parametrize(("how", "last"), [("step", 13), ("raise", 13), ("validation", 20)])
def test_a_callback_stops_the_training(how, last, tmp_path):
    recorder = Recorder()
    run = fit("flow", X, out=tmp_path / "run", callbacks=[Stop(13, how), recorder], **SETTINGS)
    assert run.steps == last and run.history[-1]["step"] == last and len(recorder.steps) == last
    assert recorder.ends[0][0] == last
    best = max(run.history, key=lambda row: row["validation_nats"])["step"]

    class Keep(Callback):
        def on_validation(self, step, metrics, run):
            if step == best:
                self.weights = {name: value.clone() for name, value in run.density.state_dict().items()}

        on_step = Stop(13, "step").on_step if last == 13 else Callback.on_step

    keep = Keep()
    fit("flow", X, callbacks=[keep], **SETTINGS)
    assert all(torch.equal(value, weights(run)[name]) for name, value in keep.weights.items())
    longer = fit("flow", X, out=tmp_path / "run", resume=True, **SETTINGS)
    assert longer.steps == 30
    if last == 20:  # else there was one more validation, of which the weights may be the best
        assert_same_weights(longer, fit("flow", X, **SETTINGS))


def test_other_objects_are_refused():
    with pytest.raises(ValueError, match=r"callbacks must be instances of loglik.training.Callback, got <function"):
        fit("flow", X, callbacks=[refused], **SETTINGS)


def test_tensorboard_reads_the_events(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit("flow", X, out=tmp_path / "run", callbacks=[TensorBoardLogger()], **SETTINGS)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("validation_nats")] == [
        (row["step"], pytest.approx(row["validation_nats"])) for row in run.history
    ]
    assert [e.step for e in events.Scalars("loss")] == [10, 20, 30]
    with pytest.raises(ValueError, match=r"TensorBoardLogger needs a folder: pass TensorBoardLogger\(folder\)"):
        fit("flow", X, callbacks=[TensorBoardLogger()], **SETTINGS)


@pytest.mark.filterwarnings("ignore:The filesystem tracking backend:FutureWarning")
def test_mlflow_reads_the_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    run = fit("flow", X, out=tmp_path / "run", callbacks=[MLflowLogger(uri, "tables")], **SETTINGS)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("tables").experiment_id])
    assert kept.info.status == "FINISHED" and kept.info.run_name == "run"
    assert kept.data.params["model"] == "flow" and kept.data.params["training.max_steps"] == "30"
    with pytest.raises(
        ValueError, match=r"MLflow cannot track runs at gopher://x \(.*\): pass MLflowLogger\(uri\), or set"
    ):
        MLflowLogger("gopher://x")
    history = client.get_metric_history(kept.info.run_id, "validation_nats")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["validation_nats"]) for row in run.history]


def test_wandb_gets_the_numbers(monkeypatch, tmp_path):
    sent, calls = [], {}

    class FakeRun:
        def log(self, values, step):
            sent.append((step, values))

        def finish(self):
            calls["finished"] = True

    wandb = ModuleType("wandb")
    wandb.init = lambda **options: calls.update(options) or FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = fit("flow", X, callbacks=[WandbLogger("tables", mode="offline")], **SETTINGS)
    assert calls["project"] == "tables" and calls["mode"] == "offline" and calls["finished"]
    assert calls["config"]["training.max_steps"] == "30"
    assert [values["validation_nats"] for _, values in sent if "validation_nats" in values] == [
        row["validation_nats"] for row in run.history
    ]
    assert [step for step, _ in sent] == sorted(step for step, _ in sent)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed .*: pip install wandb"):
        WandbLogger()
    assert "unknown logger 'tensorbord': use tensorboard, mlflow, wandb" in refused(
        "fit", "digits", "--model", "flow", "--log", "tensorbord"
    )
