"""What a test needs that neither this project nor its dependencies bring: where it is missing the test is skipped."""

import importlib
import importlib.util
import platform
import shutil
from types import ModuleType

import pytest
import torch

KEPT = []
THINGS = {
    "a C compiler": lambda: shutil.which("cc") is not None,
    "Triton": lambda: importlib.util.find_spec("triton") is not None,
    "a C++ compiler": lambda: shutil.which("g++") is not None,
    "a GPU": torch.cuda.is_available,
    "glibc": lambda: platform.libc_ver()[0] == "glibc",
    "an x86 CPU with AVX2": lambda: torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"),
    "the spline's kernel": lambda: _kernel_is_there(),
}


def needs(*things: str) -> pytest.MarkDecorator:
    """Skip a test where one of the `THINGS` is missing."""
    missing = [thing for thing in things if not THINGS[thing]()]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


def _kernel_is_there() -> bool:
    """It is compiled when loglik is installed, where there is a C compiler."""
    from loglik.cpu import spline_kernel

    return spline_kernel.LIBRARY is not None


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
        pytest.skip(f"needs {name}, which is not installed")
