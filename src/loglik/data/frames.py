"""Tables on disk as polars frames: CSV, JSON records, Parquet and Arrow.

A CSV file has a header; tabs, semicolons, bars or commas separate its columns, which are texts here.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import polars as pl

from loglik.data.limits import first_line, max_bytes, quote, read_at_most, reading

__all__ = [
    "COMPRESSED",
    "format_of",
    "is_lines",
    "is_packed",
    "is_table",
    "parse",
    "scan",
]

FORMATS = {
    ".csv": "CSV", ".tsv": "CSV", ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines",
    ".parquet": "Parquet", ".pq": "Parquet", ".feather": "Arrow", ".arrow": "Arrow", ".ipc": "Arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".zst")  # of CSV and JSON; the others compress inside
ZSTANDARD = b"\x28\xb5\x2f\xfd"
MAX_COLUMNS = 65_536
LINE = 2**24  # bytes of a header, at most
MISSING = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "-NaN", "NaT", "null", "NULL", "None"]
NUMBER = r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?"  # with a decimal point or comma


def is_table(path: Path) -> bool:
    """Return whether a file's name is that of a table."""
    return format_of(path) is not None


def is_lines(path: Path) -> bool:
    """Return whether a table's rows are lines after a header."""
    return format_of(path) == "CSV"


def is_packed(path: Path) -> bool:
    """Return whether a table's file is compressed as a whole."""
    return path.suffix.lower() in COMPRESSED


def format_of(path: Path) -> str | None:
    """Return the format of a table by the ending of its name; None if it is not that of a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        kind = FORMATS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("CSV", "JSON", "JSON lines") else None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def parse(path: Path, limit: int | None = None) -> pl.DataFrame:
    """Read a table in this process; the columns of a CSV file are texts, null where a value is missing.

    Args:
        limit: bytes of a decompressed file, at most; `max_bytes` by default.

    Raises ValueError if it does not parse.
    """
    kind = format_of(path)
    with reading(path, f"{kind} file"):
        source = _decompressed(path, limit or max_bytes(path.stat().st_size)) if is_packed(path) else path
        # open files, or glob=False: polars reads a path with `[` or `*` as a pattern of paths
        if kind == "JSON lines":
            with _open(source) as file:
                return pl.read_ndjson(file, infer_schema_length=None)
        if kind == "Parquet":
            return pl.read_parquet(path, glob=False)
        if kind == "Arrow":
            if _is_stream(path):
                return pl.read_ipc_stream(path)
            with path.open("rb") as file:
                return pl.read_ipc(file)
    return _read_csv(path, source) if kind == "CSV" else _read_json(path, source)


def _is_stream(path: Path) -> bool:
    with path.open("rb") as file:
        return not file.read(6).startswith((b"ARROW1", b"FEA1"))


def _decompressed(path: Path, limit: int) -> bytes:
    if path.suffix.lower() in (".gz", ".bz2"):
        with gzip.open(path) if path.suffix.lower() == ".gz" else bz2.open(path) as file:
            return read_at_most(file, limit)
    with path.open("rb") as file:
        if file.read(4) != ZSTANDARD:
            raise ValueError("it does not begin as Zstandard")
    # polars brings the only reader of .zst: all of the text as one field of one row
    options = {"has_header": False, "infer_schema": False, "separator": "\x1f", "eol_char": "\x1e", "quote_char": None}
    return pl.read_csv(path, glob=False, **options).item().encode()  # type: ignore[arg-type]


def _read_json(path: Path, source: Path | bytes) -> pl.DataFrame:
    """Read a list of records, `[{"a": 1, "b": "x"}, ...]`."""
    with _open(source) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not re.match(rb"\[\s*\{", start):
        raise ValueError(
            f"{path}: not a list of records, [{{...}}, ...]: name a file with one record a line .jsonl, and text .txt"
        )
    with reading(path, "JSON file"):
        return pl.read_json(source, infer_schema_length=None)


def _read_csv(path: Path, source: Path | bytes) -> pl.DataFrame:
    separator, opened = _check_header(path, source), partial(_open, source)
    with _csv_errors(path, opened, separator):
        frame = pl.read_csv(source, separator=separator, infer_schema=False, glob=False)
    frame.columns = _names(path, opened(), separator, frame.columns)
    while frame.width > 1 and frame.height and all(value is None for value in frame.row(-1)):
        frame = frame.head(-1)  # a blank line at the end
    return pl.DataFrame([_bare(series) for series in frame.iter_columns()])


def scan(path: Path, cells: int) -> Iterator[pl.DataFrame]:
    """Yield a table in blocks of about so many cells; a CSV file as texts.

    Parquet, Arrow and CSV files that are not compressed as a whole are read lazily; others are read whole first.

    Raises ValueError if it does not parse.
    """
    kind = format_of(path)
    if is_packed(path) or kind not in ("CSV", "Parquet", "Arrow") or (kind == "Arrow" and _is_stream(path)):
        frame = parse(path)
        yield from frame.iter_slices(max(1, cells // max(1, frame.width)))
    elif kind == "CSV":
        yield from _scan_csv(path, cells)
    else:
        with reading(path, f"{kind} file"):
            lazy = (
                pl.scan_parquet(path, low_memory=True, glob=False)
                if kind == "Parquet"
                else pl.scan_ipc(path, glob=False)
            )
            yield from _batches(lazy, cells)


def _batches(lazy: pl.LazyFrame, cells: int) -> Iterator[pl.DataFrame]:
    return lazy.collect_batches(chunk_size=max(1, cells // max(1, len(lazy.collect_schema()))), lazy=True)


def _scan_csv(path: Path, cells: int) -> Iterator[pl.DataFrame]:
    separator, opened = _check_header(path, path), partial(_open, path)
    names: list[str] = []
    left: pl.DataFrame | None = None  # blank lines, which are rows unless they end the file
    with _csv_errors(path, opened, separator):
        lazy = pl.scan_csv(path, separator=separator, infer_schema=False, low_memory=True, glob=False)
        for frame in _batches(lazy, cells):
            names = names or _names(path, opened(), separator, frame.columns)
            frame.columns = names
            frame = frame if left is None else pl.concat([left, frame])
            filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series() if frame.width > 1 else None
            end = frame.height if filled is None else frame.height - int(filled.reverse().arg_max() or 0)
            end = 0 if filled is not None and not filled.any() else end
            left, frame = frame.tail(frame.height - end), frame.head(end)
            yield pl.DataFrame([_bare(series) for series in frame.iter_columns()])


def _open(source: Path | bytes) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _check_header(path: Path, source: Path | bytes) -> str:
    """Return the separator; raise ValueError if the first lines are not those of a CSV file."""
    with _open(source) as file:
        first = [file.readline(LINE).decode("utf-8-sig", "replace") for _ in range(2)]
    if "\0" in "".join(first):
        raise ValueError(f"{path}: not UTF-8 text: save it as UTF-8")
    with reading(path, "CSV file"):
        separator = _separator(*(line[: 2**16] for line in first))
    if (width := first[0].count(separator) + 1) > MAX_COLUMNS or len(first[0]) >= LINE:
        raise ValueError(f"{path}: line 1 has {width:,} fields: a table has at most {MAX_COLUMNS:,} columns")
    return separator


@contextmanager
def _csv_errors(path: Path, opened: Callable[[], io.BytesIO | io.BufferedReader], separator: str) -> Iterator[None]:
    """Name the file, and a line with too many fields, in an error of the reader."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        with opened() as file:
            reason = _ragged(file, separator)
        raise ValueError(f"{path}: {reason or f'not a readable CSV file ({first_line(error)})'}") from None


def _names(path: Path, file: io.BytesIO | io.BufferedReader, separator: str, theirs: list[str]) -> list[str]:
    """Return the names of the columns in a header, or those of polars, which renames equal names."""
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines, reading(path, "CSV file"):
        read = next(csv.reader(lines, delimiter=separator), [])  # polars keeps doubled quotes
    found = read if len(read) == len(theirs) else theirs
    names = [name.strip() or other for name, other in zip(found, theirs, strict=True)]
    if all(re.fullmatch(NUMBER, name, re.I) for name in names):
        raise ValueError(f"{path}: line 1 holds numbers: give the columns' names there")
    seen: set[str] = set()
    if twice := next((name for name in names if name in seen or seen.add(name)), None):  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: two columns are named {quote(twice)}: rename one")
    return names


def _separator(header: str, row: str) -> str:
    """Return the separator that divides the first two lines into equally many fields.

    Names and decimals may contain commas.
    """
    widths = {s: [len(next(csv.reader([line], delimiter=s), [])) for line in (header, row)] for s in "\t;|,"}
    alike = [s for s, (one, two) in widths.items() if one == two > 1]
    return alike[0] if alike else max(",;\t|", key=header.count)


def _bare(series: pl.Series) -> pl.Series:
    """Return texts without the blanks around them, null where they mean a missing value."""
    bare = series.str.strip_chars()
    return bare.set(bare.is_in(MISSING), None)


def _ragged(file: io.BytesIO | io.BufferedReader, separator: str) -> str:
    """Name the first line that has more fields than the header."""
    try:
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            lines = csv.reader(text, delimiter=separator)
            width = len(next(lines))
            for fields in lines:
                if len(fields) > width:
                    return f"line {lines.line_num} has {len(fields)} fields, the header has {width}"
    except UnicodeDecodeError as error:
        return f"not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
    except (csv.Error, StopIteration):
        pass
    return ""
