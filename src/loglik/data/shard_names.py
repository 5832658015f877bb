"""Names of tar shards: their ending, and patterns that name many."""

from __future__ import annotations

import re
from pathlib import Path

from loglik.data.limits import shorten

__all__ = ["expand", "is_shard"]

SUFFIX = ".tar"
MAX_SHARDS = 10**5
RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def is_shard(path: Path | str) -> bool:
    """Return whether a file's name is that of a shard."""
    return str(path).lower().endswith(SUFFIX)


def expand(pattern: str) -> list[Path]:
    """Return the shards that a pattern names, sorted: `{000..099}` for a range of numbers, and `*`, `?` and `[...]`.

    Raises:
        FileNotFoundError: the pattern names no file.
        ValueError: a range is backwards, or too long.
    """
    names = [pattern]
    while match := RANGE.search(names[0]):
        first, last = int(match[1]), int(match[2])
        if last < first or (last - first + 1) * len(names) > MAX_SHARDS:
            raise ValueError(f"{shorten(pattern, 200)}: the range {match[0]} is empty or over {MAX_SHARDS:,} shards")
        numbers = [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
        names = [name.replace(match[0], number, 1) for name in names for number in numbers]
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        fixed = next((i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part)), None)
        if fixed is None:
            paths.append(path)
        else:
            paths += sorted(Path(*path.parts[:fixed]).glob(str(Path(*path.parts[fixed:]))))
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{shorten(str(missing[0]), 200)}: no such file, which {shorten(pattern, 200)} names")
    if not paths:
        raise FileNotFoundError(f"{shorten(pattern, 200)}: no file matches")
    return paths
