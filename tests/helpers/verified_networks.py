"""Networks built by hand from torch's own layers, in densities, and copies of a subject with some layers changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from loglik.classification import Classifier
from loglik.data import as_data
from loglik.verification import Subject


class Rows(nn.Module):
    """Digits (B, 1, 8, 8) as sequences of 8 rows, read by a network of sequences, as their mean."""

    def __init__(self, network: nn.Module, width: int = 16, positions: bool = True) -> None:
        super().__init__()
        self.embed, self.network = nn.Linear(8, width), network
        self.positions = nn.Parameter(torch.randn(8, width)) if positions else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.flatten(1, 2).float() / 16)
        h = self.network(h if self.positions is None else h + self.positions)
        return (h[0] if isinstance(h, tuple) else h).mean(1)


def built(network: nn.Module, width: int = 16, **kwargs: Any) -> Subject:
    """A classifier of digits over a network of sequences (B, 8, E), untrained."""
    torch.manual_seed(0)
    density = Classifier(Rows(network, width, **kwargs), nn.Linear(width, 10), 10)
    return Subject(density.eval(), as_data("digits"))


def of_images(*layers: nn.Module) -> Subject:
    """A classifier of digits over layers that give 4 features, untrained."""
    density = Classifier(nn.Sequential(*layers), nn.Linear(4, 10), 10, prepare=Scaled())
    return Subject(density.eval(), as_data("digits"))


class Scaled(nn.Module):
    """Grey levels 0 ... 16 as numbers 0 ... 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 16


class Mean(nn.Module):
    """The mean over positions of maps (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def changed(subject: Subject, kind: type[nn.Module], change: Callable[[Any], object]) -> Subject:
    """The subject with a change made to each module of a kind, in a copy."""
    density = copy.deepcopy(subject.density)
    modules = [module for module in density.modules() if isinstance(module, kind)]
    assert modules
    with torch.no_grad():
        for module in modules:
            change(module)
    return replace(subject, density=density)


def running(forward: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """A change: the module runs another forward, and keeps its class's name and its weights."""

    def change(module: nn.Module) -> None:
        kind = type(module)
        module.__class__ = type(kind.__name__, (kind,), {"forward": forward})

    return change
