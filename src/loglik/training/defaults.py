"""The settings and options of a named family that were not passed: the recipe's, as they suit the device.

A resumed training keeps those that it started with, whatever the device is now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_fabric import Fabric

from loglik.data.dataset import Data
from loglik.devices import DeviceInfo, describe_device
from loglik.recipes import recipe
from loglik.recipes.device import precision_for, size_for, training_for
from loglik.training.fabric import auto_precision, on_gpu
from loglik.training.settings import TrainingSettings

__all__ = ["auto_choices", "recipe_settings", "suit_device"]


def recipe_settings(name: str, data: Data, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's settings on a CPU or a GPU, before the GPU's rate is known."""
    found = recipe(name)
    where = TrainingSettings(**{k: v for k, v in chosen.items() if k == "accelerator"})
    return precision_for(found.family, data.spec, found.training(data.spec), on_gpu=on_gpu(where))


def auto_choices(settings: TrainingSettings, old: dict[str, Any]) -> dict[str, Any]:
    """Return what settings with the value `auto` stand for: as the resumed run has it, else on this device."""
    choices = dict(old.get("chosen", {}))
    if settings.precision == "auto" and "precision" not in choices:
        choices["precision"] = auto_precision(settings)
    return choices


def suit_device(
    name: str,
    data: Data,
    settings: TrainingSettings,
    requested: dict[str, Any],
    options: dict[str, Any],
    fabric: Fabric,
) -> tuple[TrainingSettings, dict[str, Any]]:
    """Return the settings and options of a new run; those that were not passed suit the device.

    Args:
        name: the family's name.
        settings: the recipe's and those requested.
        requested: the settings that were passed, which stay.
        options: the options that were passed, which stay.
        fabric: the device; the first rank decides for all.
    """
    device: DeviceInfo = fabric.broadcast(describe_device(fabric.device))
    family, spec, train = recipe(name).family, data.spec, data.train
    before = {k: getattr(settings, k) for k in recipe(name).training(spec)} | {"precision": settings.precision}
    now = training_for(family, spec, before, device, examples=len(train) // train.units_per_example)
    if "size" not in options:
        size = size_for(
            family, spec, device, units=train.size, max_time=settings.max_time, max_steps=settings.max_steps
        )
        options = {**({} if size == "small" else {"size": size}), **options}
    return replace(settings, **{k: v for k, v in now.items() if k not in requested}), options
