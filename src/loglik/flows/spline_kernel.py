"""The spline and its gradient as one pass each, by `native/spline.c`: tensor operations take sixty.

The library is made when the package is installed, if there is a C compiler then (`hatch_build.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.networks.dispatch import is_plain

__all__ = ["fits", "gradient", "spline"]

MOST_BINS = 64  # as in spline.c
WIDTH = 16  # events, the fewest for every CPU's
SMALL = 2**23  # parameters, up to which starting threads takes longer than what they save


class _Constants(ctypes.Structure):
    """What is the same for all numbers."""

    _fields_ = [
        *[(name, ctypes.c_float) for name in ("bound", "least", "free", "min_derivative", "unit_derivative")],
        ("bins", ctypes.c_int),
        ("inverse", ctypes.c_int),
    ]


def _load() -> ctypes.CDLL | None:
    kind = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "other")
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("native") / f"spline.{kind}.so"))
    except OSError:  # there is none, or it is for another system
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    given = (ctypes.POINTER(_Constants), pointer, pointer, number, number, number, number)
    library.loglik_spline.argtypes = (*given, pointer, pointer)
    library.loglik_spline_gradient.argtypes = (*given, pointer, pointer, pointer, pointer)
    library.loglik_spline.restype = library.loglik_spline_gradient.restype = None
    return library


LIBRARY = _load()


def fits(x: Tensor, raw: Tensor) -> bool:
    """Whether the kernel is there and can do it."""
    return LIBRARY is not None and raw.shape[1] < 3 * MOST_BINS and is_plain(x) and is_plain(raw)


def spline(
    x: Float[Tensor, "M N"], raw: Float[Tensor, "M P N"], constants: Sequence[float], inverse: bool
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"]]:
    """The map and its log-slope. The constants are those of spline.c, in its order."""
    call = _spline_compiled if torch.compiler.is_compiling() else _spline
    return call(x, raw, constants, inverse)


def gradient(
    x: Float[Tensor, "M N"],
    raw: Float[Tensor, "M P N"],
    to_y: Float[Tensor, "M N"],
    to_log_slope: Float[Tensor, "M N"],
    constants: Sequence[float],
    inverse: bool,
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P N"]]:
    """The gradients by x and by raw."""
    call = _gradient_compiled if torch.compiler.is_compiling() else _gradient
    return call(x, raw, to_y, to_log_slope, constants, inverse)


def _spline(x: Tensor, raw: Tensor, constants: Sequence[float], inverse: bool) -> tuple[Tensor, Tensor]:
    n, x, raw = x.shape[1], _wide(x).contiguous(), _in_order(_wide(raw))
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    _in_threads("loglik_spline", constants, inverse, x, raw, y, log_slope)
    return y[:, :n], log_slope[:, :n]


def _gradient(
    x: Tensor, raw: Tensor, to_y: Tensor, to_log_slope: Tensor, constants: Sequence[float], inverse: bool
) -> tuple[Tensor, Tensor]:
    n, raw = x.shape[1], _in_order(_wide(raw))
    x, to_y, to_log_slope = (_wide(part).contiguous() for part in (x, to_y, to_log_slope))
    to_x, to_raw = torch.empty_like(x), x.new_empty(raw.shape)
    _in_threads("loglik_spline_gradient", constants, inverse, x, raw, to_y, to_log_slope, to_x, to_raw)
    return to_x[:, :n], to_raw[:, :, :n]


# what the compiler sees of them
_spline_compiled = torch.library.custom_op(
    "loglik::spline",
    lambda *given: tuple(map(torch.Tensor.contiguous, _spline(*given))),
    mutates_args=(),
    schema="(Tensor x, Tensor raw, float[] constants, bool inverse) -> (Tensor, Tensor)",
)
_spline_compiled.register_fake(lambda x, raw, constants, inverse: (x.new_empty(x.shape), x.new_empty(x.shape)))
_gradient_compiled = torch.library.custom_op(
    "loglik::spline_gradient",
    lambda *given: tuple(map(torch.Tensor.contiguous, _gradient(*given))),
    mutates_args=(),
    schema="(Tensor x, Tensor raw, Tensor to_y, Tensor to_log_slope, float[] constants, bool inverse) "
    "-> (Tensor, Tensor)",
)
_gradient_compiled.register_fake(lambda x, raw, *rest: (x.new_empty(x.shape), x.new_empty(raw.shape)))


def _wide(t: Tensor) -> Tensor:
    missing = WIDTH - t.shape[-1]
    return F.pad(t, (0, missing)) if missing > 0 else t


def _in_order(raw: Tensor) -> Tensor:
    return raw if raw.stride()[1:] == (raw.shape[2], 1) else raw.contiguous()


def _in_threads(name: str, constants: Sequence[float], inverse: bool, x: Tensor, raw: Tensor, *others: Tensor) -> None:
    """Call it with the rows of M shared out; it holds no lock of Python's."""
    s = _Constants(*constants, (raw.shape[1] + 1) // 3, inverse)
    call, (m, n), stride = getattr(LIBRARY, name), x.shape, raw.stride(0)
    pointers = [t.data_ptr() for t in others]
    threads = min(m, torch.get_num_threads()) if raw.numel() > SMALL else 1

    def part(number: int) -> None:
        rows = m * number // threads, m * (number + 1) // threads
        call(s, x.data_ptr(), raw.data_ptr(), stride, *rows, n, *pointers)

    if threads == 1:
        return part(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
