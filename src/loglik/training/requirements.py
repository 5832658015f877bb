"""What a training requires: data that fit the density, and something to train."""

from __future__ import annotations

import torch

from loglik.data.dataset import Data
from loglik.density import Density
from loglik.evaluation.scores import arguments

__all__ = ["check_fits", "check_trainable"]


def check_fits(density: Density, data: Data) -> None:
    """Raise ValueError unless the density's event is the data's, with examples of every class and for validation."""
    if density.event == "x" and tuple(density.event_shape) != tuple(data.spec.event_shape):
        raise ValueError(
            f"the density is over events of shape {tuple(density.event_shape)}, the data {data.name!r} have events of "
            f"shape {tuple(data.spec.event_shape)}"
        )
    arguments(density, data.train.x[:1], None if data.train.y is None else data.train.y[:1])
    labels = data.train.labels()
    if density.event == "y" and labels is not None and data.spec.classes:
        absent = torch.bincount(labels, minlength=len(data.spec.classes)).argmin()
        if not (labels == absent).any():
            raise ValueError(
                f"{data.name}: no training example of class {data.spec.classes[absent]!r}: add examples of this class, "
                "or leave the class out"
            )
    if len(data.validation) == 0:
        raise ValueError(f"{data.name}: the validation split is empty: give at least 10 examples to train on")


def check_trainable(density: Density, name: str | None) -> None:
    """Raise ValueError if nothing can be trained, unless the density has no parameters by design."""
    parameters = list(density.parameters())
    by_design = density.closed_form or (name is None and not parameters)
    if by_design or any(p.requires_grad for p in parameters):
        return
    what, remedy = name or type(density).__name__, "choose another kind or family for these data"
    if parameters:
        remedy = "call requires_grad_(True) on those to train"
    raise ValueError(f"{what} has nothing to train: {len(parameters)} parameters, none with a gradient: {remedy}")
