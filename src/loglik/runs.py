"""A run: a trained density with its spec, its configuration and its history, in memory and on disk.

    NAME/
      config.yaml           family, recipe options, data, settings, versions: enough to build the density again
      model.safetensors     the weights to use
      metrics.csv           step, time, train and validation nats, learning rate, gradient norm
      checkpoints/          trainer state

Beside each file is its SHA-256 (config.sha256, model.sha256, metrics.sha256). No pickle is read or written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loglik import files, schema
from loglik.data import ImageSettings, TableSettings, TextSettings, as_data
from loglik.data.dataset import Data
from loglik.data.limits import first_line
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.devices import resolve_device
from loglik.hub import local_run
from loglik.lock import LOCK_FILES, in_use, is_locked
from loglik.model_size import ModelTooLarge, limit_size
from loglik.notebook import facts, listed
from loglik.plots import plot_history
from loglik.recipes import Unsuitable, recipe

__all__ = [
    "METRICS",
    "Run",
    "only_leftovers",
    "build_within",
    "check_empty",
    "check_free",
    "load",
    "new_folder",
    "read_config",
    "read_metrics",
    "read_weights",
    "write_config",
    "write_metrics",
    "write_weights",
]

CONFIG = "config.yaml"
LEFTOVERS = {"config.yaml.partial", "config.sha256", "config.sha256.partial"}  # what there can be before config.yaml
WEIGHTS = "model.safetensors"
PRECISIONS = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}  # of stored weights
MIN_BOUND = 2**16  # of an option or of the dimensions of an event, whatever the weights
MAX_METRICS_BYTES = 2**26
NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)|nan")  # as repr writes a number
METRICS = ("step", "time", "train_nats", "validation_nats", "learning_rate", "gradient_norm")


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        return listed("Run", {name: value for name, value in self._facts().items() if name not in ("seconds", "seed")})

    def _repr_html_(self) -> str:
        return facts(self._facts(), caption="run")

    def _facts(self) -> dict[str, Any]:
        """Return what a person asks first of a run, by name; None where it is unknown."""
        best = max((row["validation_nats"] for row in self.history), default=None)
        return {
            "model": self.model,
            "data": f"{self.config['data']}: {self.spec.describe()}" if "data" in self.config else self.spec.describe(),
            "bound": self.density.bound.value,
            "parameters": f"{sum(p.numel() for p in self.density.parameters() if p.requires_grad):,}",
            "steps": f"{self.steps:,}",
            "seconds": f"{self.train_seconds:.1f}",
            "validation": None if best is None else f"{best:.3f} nats",
            "seed": self.config.get("training", {}).get("seed"),
            "path": self.path,
        }

    def plot(self, axes: Any = None, *, against: str = "step") -> Any:
        """Draw the training and validation nats against `step` or `time`; return matplotlib's axes.

        Raises ValueError where there is no history.
        """
        return plot_history(self.history, axes, against=against)

    def data_for(self, data: Any = None, *, label: str | None = None, unseen: str | None = None) -> Data:
        """Read data in the codes of this run's density.

        Args:
            data: what `fit` accepts; if None, what the run was trained on, with the same splits.
            label: the label's column; the run's own if None.
            unseen: what a category is that the run has not seen, `score` or `refuse`; as when it was trained if None.

        Raises ValueError where data is None and the run was trained on data in memory.
        """
        if data is None and self.config["source"] is None:
            where = "elsewhere" if "adapter" in self.config else "on data in memory"
            raise ValueError(f"{self.path or 'this run'} was trained {where}: pass data")
        if data is None and Path.home().is_relative_to(self.config["source"]):
            raise ValueError(
                f"{self.path}: its data, {self.config['source']}, is the folder of all your files: pass data"
            )
        own, images = data is None and self.config.get("text"), self.config.get("images")
        table = TableSettings(**(self.config.get("table") or {})) if self.spec.kind == "table" else None
        if unseen is not None:
            if table is None:
                raise ValueError(f"unseen={unseen} is for tables, and this run's data are {self.spec.describe()}")
            table = replace(table, unseen=unseen)
        return as_data(
            self.config["source"] if data is None else data,
            label=label or self.config["label"],
            seed=self.config["training"]["seed"],
            like=self.spec,
            text=TextSettings(**self.config["text"]) if own else None,
            table=table,
            images=ImageSettings(**images) if images else None,
            beside=self.path,
        )


def only_leftovers(path: Path) -> bool:
    """Return whether a folder has only the files of a process that ended before it wrote config.yaml."""
    names = {child.name for child in path.iterdir()} - LOCK_FILES if path.is_dir() else set()
    return bool(names) and names <= LEFTOVERS


def check_free(path: Path, *, resumable: bool = True) -> None:
    """Raise FileExistsError if a folder has content, BlockingIOError if another process holds it."""
    if is_locked(path):
        raise BlockingIOError(in_use(path))
    check_empty(path, resumable=resumable)


def check_empty(path: Path, *, resumable: bool = True) -> None:
    """Raise FileExistsError if a folder has more content than a run that was stopped before its config.yaml."""
    if path.exists() and (not path.is_dir() or {child.name for child in path.iterdir()} - LOCK_FILES - LEFTOVERS):
        other = ", or pass resume=True to continue it" if resumable and (path / CONFIG).is_file() else ""
        raise FileExistsError(f"{path} exists and is not empty: choose another out={other}")


def new_folder(path: Path, *, resumable: bool = True) -> None:
    """Make an empty folder. Raises FileExistsError if the path has content, since nothing is overwritten.

    Leftovers of a process that ended before it wrote config.yaml are removed.
    """
    check_free(path, resumable=resumable)
    if only_leftovers(path):
        for name in LEFTOVERS:
            (path / name).unlink(missing_ok=True)
    with files.naming(path):
        path.mkdir(parents=True, exist_ok=True)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write a run's config.yaml, and its SHA-256."""
    text = schema.dump(config)
    files.write_with_digest(path / CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_metrics(path: Path, history: Iterable[dict[str, float]]) -> None:
    """Write a run's history to metrics.csv, and its SHA-256."""
    rows = [",".join(METRICS)] + [",".join(repr(row[name]) for name in METRICS) for row in history]
    text = "\n".join(rows) + "\n"
    files.write_with_digest(path / "metrics.csv", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the history in a run's metrics.csv; no rows if there is none, as before the first validation.

    Raises ValueError, which names the line, for anything that `write_metrics` does not write.
    """
    file = path / "metrics.csv"
    if not file.exists():
        return []
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    with files.naming(file):
        content = files.read_bytes(file, MAX_METRICS_BYTES)
    try:
        head, *lines = content.decode("ascii").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: byte {error.start} is not ASCII") from error
    if head != ",".join(METRICS):
        raise ValueError(f"{file}: line 1: expected {','.join(METRICS)}, got {head!r:.100}")
    history: list[dict[str, float]] = []
    for number, line in enumerate(lines, 2):
        cells = line.split(",")
        if len(cells) != len(METRICS) or not cells[0].isdigit() or not all(map(NUMBER.fullmatch, cells)):
            raise ValueError(f"{file}: line {number}: expected {len(METRICS)} numbers, got {line!r:.100}")
        history.append({"step": int(cells[0][:18]), **dict(zip(METRICS[1:], map(float, cells[1:]), strict=True))})
        if number > 2 and history[-2]["step"] >= history[-1]["step"]:
            raise ValueError(f"{file}: line {number}: the steps must rise, got {line!r:.100}")
    return history


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
    """Return a run's configuration, after checks against its SHA-256 and the schema.

    Raises FileNotFoundError if the folder is not a run, and ValueError if config.yaml is damaged, was changed, or is
    newer than this version.
    """
    file = path / CONFIG
    if not file.is_file():
        what = "is not a run (it has no config.yaml)" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: a run is a folder that `loglik fit` wrote")
    with files.naming(file):
        return schema.parse(files.read_bytes(file, schema.MAX_BYTES), file)


def load(path: str | Path, *, density: Density | None = None, device: str | torch.device = "cpu") -> Run:
    """Read a run: build its density from config.yaml and its weights from model.safetensors.

    Args:
        path: the run's folder, or `hf://OWNER/NAME[/FOLDER][@REVISION]` for a run on the Hugging Face Hub.
        density: for a run of a density that was built by hand: a density built the same way, which gets the weights.
        device: of the density: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA GPU if there is one, else the CPU.

    Raises FileNotFoundError if the folder is not a run, and ValueError if the run is damaged or newer than this
    version, and for a device that this machine does not have.
    """
    path, device = local_run(path), resolve_device(device)
    config = read_config(path)
    spec, name = DataSpec.from_dict(config["spec"]), config["model"]
    if density is None:
        if name is None:
            raise ValueError(f"{path} holds a density built by hand: build it again and pass load(path, density=...)")
        try:
            density = build_within(path, name, spec, config["options"])
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path / CONFIG}: {error}") from error
    density.load_state_dict(read_weights(path, density, config["training"]["precision"]))
    return Run(density.to(device).eval(), spec, config, read_metrics(path), path)


def build_within(path: Path, name: str, spec: DataSpec, options: dict[str, Any]) -> Density:
    """Build the density of a configuration if it is no larger than the weights of the run at `path`.

    Raises ValueError, before memory is taken, if it is larger or cannot be built.
    """
    parsed = recipe(name).parse(options)
    shapes = list(_weight_shapes(path).values())
    numbers, longest = sum(map(math.prod, shapes)), max((max(shape, default=1) for shape in shapes), default=1)
    if spec.kind in ("array", "table") and spec.dims > max(numbers, MIN_BOUND):
        raise ValueError(
            f"{path / CONFIG}: events of {spec.dims:,} dimensions do not fit {WEIGHTS}, {numbers:,} numbers"
        )
    for key, value in options.items():
        if type(value) is int and abs(value) > max(longest, MIN_BOUND):
            raise ValueError(f"{path / CONFIG}: {key}={value} does not fit {WEIGHTS}, whose longest side is {longest}")
    try:
        with limit_size(shapes):
            return recipe(name).build(spec, parsed)
    except ModelTooLarge as error:
        raise ValueError(f"{path / WEIGHTS} does not fit config.yaml or is damaged: {error}") from error
    except Unsuitable:
        raise
    except Exception as error:  # a stranger's spec can be wrong in any way that a constructor finds
        raise ValueError(f"{path / CONFIG} describes a model that cannot be built ({first_line(error)})") from error


def _weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    file = path / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {WEIGHTS} yet: its training has not reached a validation")
    with files.naming(file):
        files.check_digest(file)
        try:
            return files.tensor_shapes(file)
        except ValueError as error:
            raise ValueError(f"{file} does not fit config.yaml or is damaged: {error}") from error
