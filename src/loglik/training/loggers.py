"""Loggers: callbacks that send a training's numbers to TensorBoard, MLflow or Weights & Biases, imported when used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from loglik.data.limits import first_line
from loglik.runs import Run
from loglik.training.callbacks import Callback

__all__ = ["LOGGERS", "MLflowLogger", "TensorBoardLogger", "WandbLogger", "loggers_of"]

EVERY = 10  # steps between the numbers of steps; each validation is sent


class _Logger(Callback):
    """Send numbers by name: the loss and the learning rate every few steps, and each validation's metrics."""

    def open(self, run: Run) -> None:
        """Begin: called before the first numbers, with the run's settings in `run.config`."""
        raise NotImplementedError

    def send(self, step: int, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    opened = False

    def on_step(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        if step % EVERY == 0:
            self._send(step, {"loss": metrics["loss"], "learning_rate": metrics["learning_rate"]}, run)

    def on_validation(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        names = ("train_nats", "validation_nats", "gradient_norm", "time")
        self._send(step, {name: metrics[name] for name in names}, run)

    def on_end(self, step: int, metrics: Mapping[str, float], run: Run) -> None:
        if self.opened:
            self.close()
            self.opened = False

    def _send(self, step: int, values: Mapping[str, float], run: Run) -> None:
        if not self.opened:
            self.open(run)
            self.opened = True
        self.send(step, values)


class TensorBoardLogger(_Logger):
    """Write TensorBoard's event files: `tensorboard --logdir FOLDER` shows them.

    Args:
        folder: of the files; `tensorboard` in the run's folder if None.

    Raises ValueError if TensorBoard is not installed, and in `fit` if there is no folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.module = _package("torch.utils.tensorboard", "tensorboard")
        self.folder = folder

    def open(self, run: Run) -> None:
        if self.folder is None and run.path is None:
            raise ValueError("TensorBoardLogger needs a folder: pass TensorBoardLogger(folder), or out= to fit")
        self.writer = self.module.SummaryWriter(str(self.folder or run.path / "tensorboard"))  # type: ignore[operator]
        self.writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in _settings(run)), 0)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class MLflowLogger(_Logger):
    """Write a run of MLflow, with the settings as its parameters.

    Args:
        uri: where MLflow tracks runs, as `sqlite:///mlflow.db` or a server; MLflow's own choice if None.
        experiment: the experiment's name, which is made if there is none.

    Raises ValueError if MLflow is not installed or cannot track runs there.
    """

    def __init__(self, uri: str | None = None, experiment: str = "loglik") -> None:
        mlflow = _package("mlflow", "mlflow")
        self.experiment = experiment
        try:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            self.client.get_experiment_by_name(experiment)
        except mlflow.exceptions.MlflowException as error:
            raise ValueError(
                f"MLflow cannot track runs at {uri or mlflow.get_tracking_uri()} ({first_line(error)}): pass "
                "MLflowLogger(uri), or set MLFLOW_TRACKING_URI"
            ) from None

    def open(self, run: Run) -> None:
        found = self.client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(self.experiment)
        name = run.path.name if run.path else run.model
        self.run_id = self.client.create_run(experiment, run_name=name).info.run_id
        for setting, value in _settings(run):
            self.client.log_param(self.run_id, setting, value[:500])

    def send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class WandbLogger(_Logger):
    """Send a run to Weights & Biases, with the settings as its config.

    Args:
        project: its name there.
        **options: other arguments of `wandb.init`, such as `mode="offline"`.

    Raises ValueError if wandb is not installed.
    """

    def __init__(self, project: str = "loglik", **options: Any) -> None:
        self.module = _package("wandb", "wandb")
        self.project, self.options = project, options

    def open(self, run: Run) -> None:
        name = run.path.name if run.path else run.model
        options = {"name": name, "config": dict(_settings(run)), **self.options}
        self.run = self.module.init(project=self.project, **options)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[_Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}


def loggers_of(names: str | None) -> list[Callback]:
    """Return the loggers of names with commas between them. Raises ValueError for a name that is not in `LOGGERS`."""
    chosen = [name.strip() for name in (names or "").split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in LOGGERS]:
        raise ValueError(f"unknown logger {unknown[0]!r}: use {', '.join(LOGGERS)}")
    return [LOGGERS[name]() for name in chosen]


def _package(module: str, package: str) -> Any:
    """Import a module; raise ValueError with its package's name if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{package} is not installed ({error}): pip install {package}") from None


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of what the run was started with."""
    yield "model", run.model
    yield "data", str(run.config.get("data"))
    for part in ("options", "training"):
        for name, value in run.config.get(part, {}).items():
            yield f"{part}.{name}", str(value)
