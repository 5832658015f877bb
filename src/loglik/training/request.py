"""What a training is asked for: options told apart, data that fit the density, and the record of it in config.yaml."""

from __future__ import annotations

import platform
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from loglik import recipes, runs
from loglik.data.dataset import Data
from loglik.data.text import TextSettings
from loglik.density import Density
from loglik.evaluation.scores import arguments
from loglik.training.settings import TrainingSettings, seconds

__all__ = ["check_fits", "check_same", "check_trainable", "describe", "split_options"]


def split_options(density: Density | str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword options into training settings and recipe options."""
    if not isinstance(density, (str, Density)):
        raise ValueError(f"density must be a Density or a family's name, got {type(density).__name__}")
    chosen = {k: v for k, v in options.items() if k in TrainingSettings.names()}
    rest = {k: v for k, v in options.items() if k not in chosen}
    if chosen.get("max_time") is not None:
        chosen["max_time"] = seconds(chosen["max_time"])
    known = recipes.recipe(density).options if isinstance(density, str) else {}
    unknown = sorted(set(rest) - set(known))
    if unknown:
        allowed = f"{density} has {', '.join(known)}; training has" if known else "training has"
        raise ValueError(
            f"unknown option {unknown[0]!r}: {allowed} {', '.join(TrainingSettings.names())}; text has "
            f"{', '.join(TextSettings.names())}"
        )
    recipes.check_options(rest, known)
    return chosen, rest


def check_fits(density: Density, data: Data) -> None:
    """The density's event must be the data's, before anything is written."""
    if density.event == "x" and tuple(density.event_shape) != tuple(data.spec.event_shape):
        raise ValueError(
            f"the density is over events of shape {tuple(density.event_shape)}, the data {data.name!r} have events of "
            f"shape {tuple(data.spec.event_shape)}"
        )
    arguments(density, data.train.x[:1], None if data.train.y is None else data.train.y[:1])
    if density.event == "y" and data.train.y is not None and data.spec.classes:
        absent = torch.bincount(data.train.y, minlength=len(data.spec.classes)).argmin()
        if not (data.train.y == absent).any():
            raise ValueError(
                f"{data.name}: no training example of class {data.spec.classes[absent]!r}: give more of it, or leave "
                "the class out"
            )
    if len(data.validation) == 0:
        raise ValueError(f"{data.name}: the validation split is empty: give at least 10 examples to train on")


def check_trainable(density: Density, name: str | None) -> None:
    """A density with nothing to train is refused, unless that is what it is: it has no parameters by design."""
    parameters = list(density.parameters())
    by_design = not parameters if name is None else not recipes.recipe(name).trainable
    if by_design or any(p.requires_grad for p in parameters):
        return
    what, mend = name or type(density).__name__, "choose another kind or family for these data"
    if parameters:
        mend = "call requires_grad_(True) on those to train"
    raise ValueError(f"{what} has nothing to train: {len(parameters)} parameters, none with a gradient: {mend}")


def describe(name: str | None, options: dict[str, Any], data: Data, settings: TrainingSettings) -> dict[str, Any]:
    from loglik import __version__

    return {
        "format": runs.FORMAT,
        "model": name,
        "options": options,
        "data": data.name,
        "source": data.source,
        "label": data.spec.label,
        "text": None if data.text is None else data.text.to_dict(),
        "spec": data.spec.to_dict(),
        "training": settings.to_dict(),
        "versions": {
            "loglik": __version__,
            "torch": torch.version.__version__,
            "python": platform.python_version(),
        },
    }


def check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A run is resumed with what it was begun with, but for its limits."""
    free = {"max_steps", "max_epochs", "max_time", "patience"}
    for key in ("model", "options", "data", "label", "text", "spec"):
        if old.get(key) != new[key]:
            was, now = (shorten(str(value), 300) for value in (old.get(key), new[key]))
            raise ValueError(f"{path} was begun with another {key}: {was}, now {now}")
    for key, value in new["training"].items():
        if key not in free and old["training"].get(key) != value:
            raise ValueError(f"{path} was begun with {key}={old['training'].get(key)}, now {key}={value}")
