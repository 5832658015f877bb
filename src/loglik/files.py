"""Files written whole or not at all, with errors that name them, and tensors that are checked as they are read.

The SHA-256 of a file is in a file beside it, in the format of `sha256sum`: `sha256sum -c model.sha256` checks it too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "FULL",
    "check_digest",
    "digest",
    "naming",
    "read_bytes",
    "read_tensors",
    "replacing",
    "tensor_shapes",
    "write_tensors",
    "write_text",
    "write_with_digest",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # free space or a higher limit lets the same write succeed
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
HEADER_BYTES = 2**20  # of a file of tensors, at most, and for each tensor:
HEADER_BYTES_PER_TENSOR = 2**10
MAX_HEADER_BYTES = 2**24  # where the number of tensors is not known


class _Named(OSError):
    """An error of the system whose message is complete."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an error of the system in this block name the file; on a full disk, also say what to do."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        raise _named(path, int(found[1]) if found else None, str(error)) from error
    except _Named:
        raise
    except OSError as error:
        if error.errno is None or (error.filename is not None and error.errno not in FULL):
            raise
        raise _named(path, error.errno, str(error)) from error


def _named(path: Path, code: int | None, message: str) -> OSError:
    why = message.splitlines()[0] if code is None else os.strerror(code).lower()
    remedy = {errno.EFBIG: ": raise the limit of a file's size (ulimit -f)"} | dict.fromkeys(FULL[:2], ": free space")
    failure = _Named(f"{path}: {why}{remedy.get(code or 0, '')}")
    failure.errno = code
    return failure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a file, and give it the file's name at the end.

    If the block fails, the file is as it was and the temporary file is removed; the error names the file.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with naming(path):
            temporary.unlink(missing_ok=True)  # it may be a link
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # by umask, whatever wrote the file
            os.replace(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file, after a check against its SHA-256.

    Raises ValueError for a file of more than `limit` bytes, or if its SHA-256 is not the one beside it.
    """
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path} has {size:,} bytes, at most {limit:,} expected")
    check_digest(path)
    return path.read_bytes()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file of tensors; one with another's memory is cloned, since safetensors refuses it."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata)


def write_with_digest(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by `write(temporary)`, and its SHA-256 beside it.

    While the file is replaced, the SHA-256 of both the old file and the new one are there, so that the two files agree
    whenever the process ends.
    """
    beside = path.with_suffix(".sha256")
    with replacing(path) as temporary:
        write(temporary)
        line = _line(temporary, path.name)
        lines = list(dict.fromkeys([*_accepted(path), line]))
        write_text(beside, "".join(lines))
    if len(lines) > 1:
        write_text(beside, line)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def check_digest(path: Path) -> None:
    """Raise ValueError if the SHA-256 beside a file is not the file's; accept a file with none beside it."""
    if not _agrees(path):
        beside = path.with_suffix(".sha256").name
        raise ValueError(
            f"{path} is damaged or was changed: its SHA-256 is not the one in {beside}: copy both files from where "
            f"they are intact, or delete {beside} if the change was on purpose"
        )


def _agrees(path: Path) -> bool:
    beside = path.with_suffix(".sha256")
    if not beside.exists():
        return True
    if not beside.is_file():  # a pipe would be waited for
        return False
    listed, line = _listed(path), _line(path, path.name)
    return line in listed and len(listed) <= 2 and all(len(other) == len(line) for other in listed)


def _listed(path: Path) -> list[str]:
    """Return the lines beside a file: one, or two if writing the file was interrupted."""
    with path.with_suffix(".sha256").open("rb") as file:
        return [line.decode("latin-1") for line in file.read(2**10).splitlines(keepends=True)]


def _accepted(path: Path) -> list[str]:
    """Return the line of a file that is to be replaced, if the file is good."""
    if not path.is_file():
        return []
    if path.with_suffix(".sha256").exists() and len(listed := _listed(path)) == 1:
        return listed  # the file need not be read
    return [_line(path, path.name)] if _agrees(path) else []


def _line(path: Path, name: str) -> str:
    return f"{digest(path)}  {name}\n"


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file, from its header. Raises ValueError for a damaged one."""
    _check_header(path, MAX_HEADER_BYTES)
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _check_header(path: Path, limit: int) -> None:
    with path.open("rb") as raw:
        if (size := int.from_bytes(raw.read(8), "little")) > limit:
            raise ValueError(f"its header has {size} bytes, at most {limit} expected")


def read_tensors(path: Path, like: Mapping[str, Tensor], *, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, with the names, shapes and types of others, on the CPU.

    Names, shapes and types are compared in the file's header, before memory is taken. Floating-point tensors may also
    have the type `precision`.

    Raises ValueError, which says what differs, also for a file that is damaged and for values that are not finite; a
    buffer that has infinities in `like` may have them.
    """
    _check_header(path, HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(like))
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name in [*like, *sorted(names - like.keys())]:
                if name not in like or name not in names:
                    raise ValueError(f"{name!r:.100} is {'missing' if name in like else 'not a name of the model'}")
                header = file.get_slice(name)
                shape, dtype, other = tuple(header.get_shape()), header.get_dtype(), like[name]
                if shape != tuple(other.shape):
                    raise ValueError(f"{name} has shape {shape}, the model's is {tuple(other.shape)}")
                allowed = {other.dtype} | ({precision} if precision and other.is_floating_point() else set())
                if other.dtype in DTYPES.values() and DTYPES.get(dtype) not in allowed:
                    raise ValueError(
                        f"{name} has type {dtype}, the model's is {str(other.dtype).removeprefix('torch.')}"
                    )
            tensors = {name: file.get_tensor(name).to(other.dtype) for name, other in like.items()}
    except SafetensorError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    for name, value in tensors.items():
        _check_finite(name, value, like[name])
    return tensors


def _check_finite(name: str, value: Tensor, like: Tensor) -> None:
    if value.isfinite().all():
        return
    number = int(value.isnan().sum())
    if number or not like.isinf().any():
        what = f"{number} of {value.numel()} values are NaN" if number else "not all values are finite"
        raise ValueError(f"{what} in {name}")
