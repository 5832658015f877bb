"""The configuration of a run: options split by what they set, and config.yaml."""

from __future__ import annotations

import platform
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from loglik import recipes, runs
from loglik.data.dataset import Data
from loglik.data.text_settings import TextSettings
from loglik.density import Density
from loglik.training.settings import TrainingSettings, seconds
from loglik.version import __version__

__all__ = ["check_same_config", "run_config", "split_options"]

LIMITS = {"max_steps", "max_epochs", "max_time", "patience"}  # which a resumed run may change,
RANKS = {
    "devices",
    "num_nodes",
    "strategy",
    "accumulate",
}  # and how many processes share the work: any number computes the same


def split_options(density: Density | str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword options into training settings and recipe options.

    Raises ValueError for an option of neither, and for a recipe's option of the wrong type.
    """
    if not isinstance(density, (str, Density)):
        raise ValueError(f"density must be a Density or a family's name, got {type(density).__name__}")
    chosen = {k: v for k, v in options.items() if k in TrainingSettings.names()}
    rest = {k: v for k, v in options.items() if k not in chosen}
    if chosen.get("max_time") is not None:
        chosen["max_time"] = seconds(chosen["max_time"])
    recipe = recipes.recipe(density) if isinstance(density, str) else None
    known = recipe.options if recipe else {}
    unknown = sorted(set(rest) - set(known))
    if unknown:
        allowed = f"{density} has {', '.join(known)}; training has" if known else "training has"
        raise ValueError(
            f"unknown option {unknown[0]!r}: {allowed} {', '.join(TrainingSettings.names())}; text has "
            f"{', '.join(TextSettings.names())}"
        )
    if recipe:
        recipe.parse(rest)
    return chosen, rest


def run_config(name: str | None, options: dict[str, Any], data: Data, settings: TrainingSettings) -> dict[str, Any]:
    """Return the content of config.yaml: what builds the density and reads the data again, and the versions."""
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


def check_same_config(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless a run is resumed with the configuration it began with; limits and ranks may differ."""
    for key in ("model", "options", "data", "label", "text", "spec"):
        if old.get(key) != new[key]:
            was, now = (shorten(str(value), 300) for value in (old.get(key), new[key]))
            raise ValueError(f"{path} was begun with another {key}: {was}, now {now}")
    for key, value in new["training"].items():
        if key not in LIMITS | RANKS and old["training"].get(key) != value:
            was = old["training"].get(key)
            hint = f': pass device="{was}"' if key == "accelerator" else ""
            raise ValueError(f"{path} was begun with {key}={was}, now {key}={value}{hint}")
