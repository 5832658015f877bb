"""The configuration of a run: options split by what they set, and config.yaml."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loglik import recipes, schema
from loglik.cpu.choices import Choices, choices
from loglik.data.dataset import Data
from loglik.data.image_settings import ImageSettings
from loglik.data.limits import shorten
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings
from loglik.density import Density
from loglik.ranks import launched_processes
from loglik.recipes.options import check_values
from loglik.training.settings import TrainingSettings, seconds
from loglik.version import __version__

__all__ = ["recorded_settings", "check_same_config", "recorded_choices", "run_config", "split_options"]

LIMITS = ("max_steps", "max_epochs", "max_time")
RANKS = ("devices", "num_nodes", "strategy", "accumulate")  # how many processes share the work changes no number
CHANGEABLE = {*LIMITS, *RANKS, "patience", "keep"}  # which a resumed run may change


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
            f"{', '.join(TextSettings.names())}; a table has {', '.join(TableSettings.names())}; images have "
            f"{', '.join(ImageSettings.names())}"
        )
    if recipe:
        recipe.parse(rest)
    return chosen, rest


def run_config(
    name: str | None, options: dict[str, Any], data: Data, settings: TrainingSettings, chosen: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of config.yaml: what builds the density and reads the data again, and the versions.

    `chosen` holds what settings with the value `auto` stand for on this device.
    """
    return {
        "format": schema.FORMAT,
        "model": name,
        "options": options,
        "data": data.name,
        "source": data.source,
        "label": data.spec.label,
        "text": None if data.text is None else data.text.to_dict(),
        "table": None if data.table is None else data.table.to_dict(),
        "images": None if data.images is None else data.images.to_dict(),
        "spec": data.spec.to_dict(),
        "training": settings.to_dict(),
        "chosen": chosen,
        "versions": {
            "loglik": __version__,
            "torch": torch.version.__version__,
            "python": platform.python_version(),
        },
    }


def recorded_settings(config: dict[str, Any], chosen: dict[str, Any]) -> TrainingSettings:
    """Return the settings of a run that is resumed, without its limits if `chosen` has one.

    Raises ValueError, in one line, for a setting that is unknown or of the wrong type.
    """
    values = {k: v for k, v in config["training"].items() if k not in LIMITS or not set(LIMITS) & set(chosen)}
    if launched_processes() is not None:  # the launcher chooses
        values = {k: v for k, v in values.items() if k not in ("devices", "num_nodes")}
    if unknown := sorted(set(values) - set(TrainingSettings.names())):
        raise ValueError(f"config.yaml has an unknown training setting {unknown[0]!r:.60}")
    try:
        check_values(TrainingSettings, values)
        return TrainingSettings(**values)
    except ValueError as error:
        raise ValueError(f"config.yaml has a wrong training setting: {error}") from error


def check_same_config(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless a run is resumed with its own configuration; limits and ranks may differ."""
    in_memory = old["source"] is None or new["source"] is None  # whose name says nothing
    for key in ("model", "options", "data", "label", "text", "table", "images", "spec"):
        if key == "options" and old["model"] is not None:
            chosen = recipes.recipe(old["model"])
            if chosen.parse(old["options"]) == chosen.parse(new["options"]):  # a default may be passed or left out
                continue
        if old.get(key) != new[key] and not (key == "data" and in_memory):
            was, now = (shorten(str(value), 300) for value in (old.get(key), new[key]))
            raise ValueError(f"{path} was started with another {key}: {was}, now {now}")
    for key, value in new["training"].items():
        if key not in CHANGEABLE and old["training"].get(key) != value:
            was = old["training"].get(key)
            hint = f': pass device="{was}"' if key == "accelerator" else ""
            raise ValueError(f"{path} was started with {key}={was}, now {key}={value}{hint}")


def recorded_choices(config: dict[str, Any], report: Callable[[str], None]) -> Choices | None:
    """Return the CPU's choices that a run started with, and report those that this machine would make differently.

    None if the run has none, as one that started on a GPU.
    """
    recorded = Choices.from_dict(config.get("cpu"))
    if recorded is not None and recorded != choices():
        here, before = choices().to_dict(), recorded.to_dict()
        changed = ", ".join(
            f"{name}={before[name]} (here {here[name]})" for name in before if before[name] != here[name]
        )
        report(f"the CPU's operations stay those that the run started with: {changed}")
    return recorded
