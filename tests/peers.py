"""Peers that tests compare with, where they are installed."""

import importlib
from types import ModuleType

import pytest
import torch

KEPT = []


def peer(name: str) -> ModuleType:
    """A peer's module; the test is skipped where it is missing.

    A torchvision built for another torch asks for operators that its binary would bring: their names are registered.
    """
    if not KEPT:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                KEPT[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
