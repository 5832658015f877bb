"""Text as bytes: one stream, seen through windows of T bytes.

The stream is cut by position into training, validation and test (80/10/10), at multiples of T. Training
windows overlap: one begins at each byte. Validation and test windows stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from loglik.data.dataset import SPLITS, Data, Split, check_kind
from loglik.data.spec import DataSpec

__all__ = ["into_windows", "is_text", "load_text"]


def is_text(path: Path) -> bool:
    """Whether a file's first 64 KiB hold no zero byte."""
    with path.open("rb") as file:
        return b"\0" not in file.read(65_536)


def load_text(
    files: Mapping[str, list[Path]],
    *,
    name: str,
    where: str,
    like: DataSpec | None = None,
    window: int = 128,
) -> Data:
    """Text files, one after another, for the split `train` and perhaps `validation` and `test`.

    Raises:
        ValueError: the text is empty, or too short for a window in each split.
    """
    streams = {split: b"".join(path.read_bytes() for path in paths) for split, paths in files.items()}
    return into_windows(streams, name=name, where=where, like=like, window=window)


def into_windows(
    streams: Mapping[str, bytes], *, name: str, where: str, like: DataSpec | None = None, window: int = 128
) -> Data:
    """Data from a stream of bytes for each given split; a split not given is cut from the training stream.

    Args:
        like: the spec of an existing model; its window is taken, and short text needs one window only.
        window: T, in bytes.
    """
    check_kind("text", like, where)
    t = like.event_shape[0] if like else window
    if t < 1:
        raise ValueError(f"window must be at least 1 byte, got {window}")
    if not any(streams.values()):
        raise ValueError(f"{where}: the text is empty")
    parts = {split: _tensor(stream) for split, stream in streams.items()}
    if like is not None and like.levels is not None and like.levels < 256:
        for stream in parts.values():
            if (stream >= like.levels).any():
                at = int((stream >= like.levels).int().argmax())
                raise ValueError(f"{where}: byte {at} is {stream[at]}, above {like.levels - 1}, the highest level")
    missing = [split for split in SPLITS if split not in parts]
    stream, windows = parts["train"], len(parts["train"]) // t
    tenth = windows // 10 if like else max(1, windows // 10)
    end = max(0, windows - len(missing) * tenth) * t
    parts["train"] = stream[:end] if missing else stream
    for split in missing:
        parts[split] = stream[end : end + tenth * t]
        end += tenth * t
    sizes = {split: len(parts[split]) for split in SPLITS}
    if (sizes["train"] if like else min(sizes.values())) < t:
        got = ", ".join(f"{size} bytes for {split}" for split, size in sizes.items())
        total = sum(map(len, streams.values()))
        raise ValueError(
            f"{where}: {total} bytes are too short for a window of {t} in each split ({got}): "
            f"give at least {3 * t} bytes or a shorter window"
        )
    train = Split(parts["train"].unfold(0, t, 1))
    validation, test = (Split(parts[s][: len(parts[s]) // t * t].view(-1, t)) for s in ("validation", "test"))
    return Data(name, like or DataSpec(kind="text", event_shape=(t,), levels=256), train, validation, test)


def _tensor(stream: bytes) -> UInt8[Tensor, " N"]:
    # A bytearray, because torch wants memory that it could write to.
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8) if stream else torch.empty(0, dtype=torch.uint8)
