"""A run: a trained density with its spec, its configuration and its history, in memory and on disk.

    NAME/
      config.yaml           family, recipe options, data, settings, versions: enough to build the density again
      model.safetensors     the weights to use
      model.sha256          their SHA-256
      metrics.csv           step, time, train and validation nats, learning rate, gradient norm
      checkpoints/          trainer state

No pickle is read or written.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from loglik import files
from loglik.data import TextSettings, as_data
from loglik.data.dataset import Data
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.devices import resolve_device
from loglik.recipes import build

__all__ = [
    "FORMAT",
    "METRICS",
    "Run",
    "load",
    "new_folder",
    "read_config",
    "read_weights",
    "write_config",
    "write_metrics",
    "write_weights",
]

FORMAT = 1  # of a run's folder; a format that an older loglik cannot read gets a higher number
WEIGHTS = "model.safetensors"
PRECISIONS = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}  # of stored weights
METRICS = ("step", "time", "train_nats", "validation_nats", "learning_rate", "gradient_norm")


@dataclass
class Run:
    """A trained density with its spec, configuration and history.

    `history` has one row per validation, with the fields of `METRICS`; times in seconds.
    """

    density: Density
    spec: DataSpec
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    path: Path | None = None

    @property
    def model(self) -> str:
        """The family's name; for a density built by hand, the name of its class."""
        return self.config.get("model") or type(self.density).__name__.lower()

    @property
    def steps(self) -> int:
        """Training steps made."""
        return self.config.get("steps", 0)

    @property
    def train_seconds(self) -> float:
        """Seconds of training, validations included."""
        return self.config.get("train_seconds", 0.0)

    def data_for(self, data: Any = None, *, label: str | None = None) -> Data:
        """Read data in the codes of this run's density.

        Args:
            data: what `fit` accepts; if None, what the run was trained on, with the same splits.
            label: the label's column; the run's own if None.

        Raises ValueError where data is None and the run was trained on data in memory.
        """
        if data is None and self.config["source"] is None:
            raise ValueError(f"{self.path or 'this run'} was trained on data in memory: pass data")
        own = data is None and self.config.get("text")
        return as_data(
            self.config["source"] if data is None else data,
            label=label or self.config["label"],
            seed=self.config["training"]["seed"],
            like=self.spec,
            text=TextSettings(**self.config["text"]) if own else None,
            beside=self.path,
        )


def new_folder(path: Path, *, resumable: bool = True) -> None:
    """Make an empty folder. Raises FileExistsError if the path has content, since nothing is overwritten.

    A config.yaml.partial alone, left by a process that ended while it began a run, is removed.
    """
    if path.is_dir() and [child.name for child in path.iterdir()] == ["config.yaml.partial"]:
        (path / "config.yaml.partial").unlink()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        other = ", or pass resume=True to continue it" if resumable and (path / "config.yaml").is_file() else ""
        raise FileExistsError(f"{path} exists and is not empty: choose another out={other}")
    with files.naming(path):
        path.mkdir(parents=True, exist_ok=True)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write a run's config.yaml."""
    files.write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """Write a run's history to metrics.csv."""
    rows = [",".join(METRICS)] + [",".join(repr(row[name]) for name in METRICS) for row in history]
    files.write_text(path / "metrics.csv", "\n".join(rows) + "\n")


def write_weights(path: Path, density: Density) -> None:
    """Write a density's weights to a run's model.safetensors, and their SHA-256 to model.sha256."""
    weights = density.state_dict()
    files.write_with_digest(path / WEIGHTS, lambda temporary: files.write_tensors(temporary, weights))


def read_weights(path: Path, density: Density, precision: str | None = None) -> dict[str, Tensor]:
    """Return the weights in a run's model.safetensors, on the CPU, after checks against their SHA-256 and the density.

    Args:
        path: the run's folder.
        density: has the names, shapes and types of the weights.
        precision: of the training; `64-true` stores weights in float64.

    Raises FileNotFoundError if there are none, and ValueError if they are damaged, do not fit or are not finite.
    """
    file = path / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {WEIGHTS} yet: its training has not reached a validation")
    with files.naming(file):
        files.check_digest(file)  # a run of an earlier version has no SHA-256
        try:
            return files.read_tensors(file, density.state_dict(), precision=PRECISIONS.get(precision or ""))
        except ValueError as error:
            raise ValueError(f"{file} does not fit config.yaml or is damaged: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return a run's configuration.

    Raises FileNotFoundError if the folder is not a run, and ValueError if config.yaml is damaged or newer than this
    version.
    """
    file = path / "config.yaml"
    if not file.is_file():
        what = "is not a run (it has no config.yaml)" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: a run is a folder that `loglik fit` wrote")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        version = int(config["format"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a run's configuration ({str(error).splitlines()[0]})") from error
    if version > FORMAT:
        raise ValueError(
            f"{path} was made by a newer loglik ({config.get('versions', {}).get('loglik', 'unknown')}, run format "
            f"{version}; this version reads up to {FORMAT}): upgrade loglik to read it"
        )
    return config


def load(path: str | Path, *, density: Density | None = None, device: str | torch.device = "cpu") -> Run:
    """Read a run: build its density from config.yaml and its weights from model.safetensors.

    Args:
        path: the run's folder.
        density: for a run of a density that was built by hand: a density built the same way, which gets the weights.
        device: of the density: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA GPU if there is one, else the CPU.

    Raises FileNotFoundError if the folder is not a run, and ValueError if the run is damaged or newer than this
    version, and for a device that this machine does not have.
    """
    path, device = Path(path), resolve_device(device)
    config = read_config(path)
    try:
        spec, name, options = DataSpec.from_dict(config["spec"]), config["model"], dict(config["options"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.yaml'} is damaged: a field is missing or wrong ({error})") from error
    if density is None:
        if name is None:
            raise ValueError(f"{path} holds a density built by hand: build it again and pass load(path, density=...)")
        density = build(name, spec, **options)
    training = config.get("training")
    precision = training.get("precision") if isinstance(training, dict) else None
    density.load_state_dict(read_weights(path, density, precision))
    return Run(density.to(device).eval(), spec, config, _read_metrics(path), path)


def _read_metrics(path: Path) -> list[dict[str, float]]:
    file = path / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
