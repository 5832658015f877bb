"""The rational-quadratic spline and its gradient in one pass each, by `native/spline.c`; tensor operations take sixty.

hatch_build.py compiles the library when the package is installed, if there is a C compiler. K bins; M numbers of each
of N events; P = 3 K - 1 raw parameters. `constants` are those of spline.c, in its order: the bound, the minimum size of
a bin, the free length, the minimum derivative and the raw parameter of derivative 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.cpu.dispatch import is_plain

__all__ = ["compiled_operations", "fits", "rows_contiguous", "spline", "spline_gradient"]

MAX_BINS = 64  # as in spline.c
MIN_EVENTS = 16  # floats in the widest vector of any CPU; fewer events are padded
SINGLE_THREAD_PARAMETERS = 2**23  # up to this size starting threads takes longer than they save


class _Constants(ctypes.Structure):
    """`Spline` of spline.c: what is the same for all numbers."""

    _fields_ = [
        *[(name, ctypes.c_float) for name in ("bound", "min_size", "free", "min_derivative", "unit_derivative")],
        ("bins", ctypes.c_int),
        ("inverse", ctypes.c_int),
    ]


def _load() -> ctypes.CDLL | None:
    instructions = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "other")
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("native") / f"spline.{instructions}.so"))
    except OSError:  # it is missing, or made for another system
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    inputs = (ctypes.POINTER(_Constants), pointer, pointer, integer, integer, integer, integer)
    library.loglik_spline.argtypes = (*inputs, pointer, pointer)
    library.loglik_spline_gradient.argtypes = (*inputs, pointer, pointer, pointer, pointer)
    library.loglik_spline.restype = library.loglik_spline_gradient.restype = None
    return library


LIBRARY = _load()


def fits(x: Tensor, raw: Tensor) -> bool:
    """Return whether the kernel is there and accepts these tensors."""
    return LIBRARY is not None and raw.shape[1] < 3 * MAX_BINS and is_plain(x) and is_plain(raw)


def spline(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], constants: Sequence[float], inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """Return the spline of each number, or its inverse, and log|dy/dx| of that map."""
    call = _spline_compiled if torch.compiler.is_compiling() else _spline
    return call(x, raw, constants, inverse)


def spline_gradient(
    x: Float[Tensor, "M N"],
    raw: Float[Tensor, "M P N"],
    grad_y: Float[Tensor, "M N"],
    grad_log_slope: Float[Tensor, "M N"],
    constants: Sequence[float],
    inverse: bool,
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    """Return the gradients by x and by raw, from those by the results of `spline`."""
    call = _gradient_compiled if torch.compiler.is_compiling() else _gradient
    return call(x, raw, grad_y, grad_log_slope, constants, inverse)


def _spline(x: Tensor, raw: Tensor, constants: Sequence[float], inverse: bool) -> tuple[Tensor, Tensor]:
    n, x, raw = x.shape[1], _padded(x).contiguous(), rows_contiguous(_padded(raw))
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    _call("loglik_spline", constants, inverse, x, raw, y, log_slope)
    return y[:, :n], log_slope[:, :n]


def _gradient(
    x: Tensor, raw: Tensor, grad_y: Tensor, grad_log_slope: Tensor, constants: Sequence[float], inverse: bool
) -> tuple[Tensor, Tensor]:
    n, raw = x.shape[1], rows_contiguous(_padded(raw))
    x, grad_y, grad_log_slope = (_padded(part).contiguous() for part in (x, grad_y, grad_log_slope))
    grad_x, grad_raw = torch.empty_like(x), x.new_empty(raw.shape)
    _call("loglik_spline_gradient", constants, inverse, x, raw, grad_y, grad_log_slope, grad_x, grad_raw)
    return grad_x[:, :n], grad_raw[:, :, :n]


def compiled_operations(suffix: str, spline: Callable[..., Any], gradient: Callable[..., Any]) -> tuple[Any, Any]:
    """Return what torch.compile sees of a kernel of the spline and of its gradient: operations with their shapes."""

    def contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: tuple(map(torch.Tensor.contiguous, function(*inputs)))

    mapped = torch.library.custom_op(
        f"loglik::spline{suffix}",
        contiguous(spline),
        mutates_args=(),
        schema="(Tensor x, Tensor raw, float[] constants, bool inverse) -> (Tensor, Tensor)",
    )
    mapped.register_fake(lambda x, raw, constants, inverse: (x.new_empty(x.shape), x.new_empty(x.shape)))
    differentiated = torch.library.custom_op(
        f"loglik::spline_gradient{suffix}",
        contiguous(gradient),
        mutates_args=(),
        schema="(Tensor x, Tensor raw, Tensor grad_y, Tensor grad_log_slope, float[] constants, bool inverse) "
        "-> (Tensor, Tensor)",
    )
    differentiated.register_fake(lambda x, raw, *rest: (x.new_empty(x.shape), x.new_empty(raw.shape)))
    return mapped, differentiated


_spline_compiled, _gradient_compiled = compiled_operations("", _spline, _gradient)


def _padded(t: Tensor) -> Tensor:
    missing = MIN_EVENTS - t.shape[-1]
    return F.pad(t, (0, missing)) if missing > 0 else t


def rows_contiguous(raw: Tensor) -> Tensor:
    """Return raw with the numbers of each of M rows side by side in memory; a copy only where they are not."""
    return raw if raw.stride()[1:] == (raw.shape[2], 1) else raw.contiguous()


def _call(name: str, constants: Sequence[float], inverse: bool, x: Tensor, raw: Tensor, *others: Tensor) -> None:
    """Call a function of spline.c, the rows of M divided among threads: ctypes releases Python's lock."""
    settings = _Constants(*constants, (raw.shape[1] + 1) // 3, inverse)
    function, (m, n), stride = getattr(LIBRARY, name), x.shape, raw.stride(0)
    pointers = [t.data_ptr() for t in others]
    threads = min(m, torch.get_num_threads()) if raw.numel() > SINGLE_THREAD_PARAMETERS else 1

    def part(number: int) -> None:
        rows = m * number // threads, m * (number + 1) // threads
        function(settings, x.data_ptr(), raw.data_ptr(), stride, *rows, n, *pointers)

    if threads == 1:
        return part(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
