"""Tables on disk as polars frames: CSV, JSON records, Parquet and Arrow, with columns typed by their values.

A CSV file has a header; tabs, semicolons, bars or commas separate its columns. Where commas do not, a column whose
values are all numbers with decimal commas is read as numbers.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from loglik.data.limits import first_line, max_bytes, quote, read_at_most, reading

__all__ = ["COMPRESSED", "NUMBER", "format_of", "is_lines", "is_packed", "is_table", "parse"]

FORMATS = {
    ".csv": "CSV", ".tsv": "CSV", ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines",
    ".parquet": "Parquet", ".pq": "Parquet", ".feather": "Arrow", ".arrow": "Arrow", ".ipc": "Arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".zst")  # of CSV and JSON; the others compress inside
ZSTANDARD = b"\x28\xb5\x2f\xfd"
MAX_COLUMNS = 65_536
LINE = 2**24  # bytes of a header, at most
MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL"]

NUMBER = r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?"  # with a decimal point or comma
THOUSANDS = r"[-+]?[1-9]\d{0,2},\d{3}"  # 1,234 is 1.234 to some and 1234 to others


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


def parse(path: Path, texts: Sequence[str] = (), limit: int | None = None) -> pl.DataFrame:
    """Read a table in this process; the columns `texts` are not typed by their values.

    Args:
        limit: bytes of a decompressed file, at most; `max_bytes` by default.

    Raises:
        ValueError: it does not parse, or a number in it may be read in two ways.
    """
    kind = format_of(path)
    with reading(path, f"{kind} file"):
        source = _decompressed(path, limit or max_bytes(path.stat().st_size)) if is_packed(path) else path
        # open files, or glob=False: polars reads a path with `[` or `*` as a pattern of paths
        if kind == "JSON lines":
            with _opened(source) as file:
                return pl.read_ndjson(file, infer_schema_length=None)
        if kind == "Parquet":
            return pl.read_parquet(path, glob=False)
        if kind == "Arrow":
            with path.open("rb") as file:
                stream = not file.read(6).startswith((b"ARROW1", b"FEA1"))
                file.seek(0)
                return pl.read_ipc_stream(path) if stream else pl.read_ipc(file)
    return _read_csv(path, source, set(texts)) if kind == "CSV" else _read_json(path, source)


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


def _opened(source: Path | bytes) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _read_json(path: Path, source: Path | bytes) -> pl.DataFrame:
    """Read a list of records, `[{"a": 1, "b": "x"}, ...]`."""
    with _opened(source) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not re.match(rb"\[\s*\{", start):
        raise ValueError(
            f"{path}: not a list of records, [{{...}}, ...]: name a file with one record a line .jsonl, and text .txt"
        )
    with reading(path, "JSON file"):
        return pl.read_json(source, infer_schema_length=None)


def _read_csv(path: Path, source: Path | bytes, texts: set[str]) -> pl.DataFrame:
    with _opened(source) as file:
        first = [file.readline(LINE).decode("utf-8-sig", "replace") for _ in range(2)]
    if "\0" in "".join(first):
        raise ValueError(f"{path}: not UTF-8 text: save it as UTF-8")
    with reading(path, "CSV file"):
        separator = _separator(*(line[: 2**16] for line in first))
    if (width := first[0].count(separator) + 1) > MAX_COLUMNS or len(first[0]) >= LINE:
        raise ValueError(f"{path}: line 1 has {width:,} fields: a table has at most {MAX_COLUMNS:,} columns")
    try:
        frame = pl.read_csv(source, separator=separator, infer_schema=False, glob=False)
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        with _opened(source) as file:
            reason = _ragged(file, separator)
        raise ValueError(f"{path}: {reason or f'not a readable CSV file ({first_line(error)})'}") from None
    frame.columns = _names(path, _opened(source), separator, frame.columns)
    while frame.width > 1 and frame.height and all(value is None for value in frame.row(-1)):
        frame = frame.head(-1)  # a blank line at the end
    columns = [_bare(series) for series in frame.iter_columns()]
    if separator != ",":
        columns = _with_points(path, columns, texts)
    return pl.DataFrame([series if series.name in texts else _typed(series) for series in columns])


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


def _with_points(path: Path, columns: list[pl.Series], texts: set[str]) -> list[pl.Series]:
    """Replace decimal commas by points in the columns that are numbers with decimal commas.

    Raises ValueError where a comma may separate thousands as well, or another column has decimal points.
    """
    numbers = [s for s in columns if s.name not in texts and s.str.contains(f"(?i)^{NUMBER}$").all()]
    commas = [s for s in numbers if s.str.contains(",", literal=True).any()]
    if not commas:
        return columns
    first = commas[0].filter(commas[0].str.contains(",", literal=True)).item(0)
    values = pl.concat([s.rename("") for s in commas])
    values = values.filter(values.str.contains(",", literal=True).fill_null(False))
    if values.str.contains(f"^{THOUSANDS}$").all():
        raise ValueError(
            f"{path}: column {quote(commas[0].name)}: {quote(first)} has a decimal comma or a separator "
            f"of thousands: write {first.replace(',', '.')} or {first.replace(',', '')}"
        )
    if points := [s for s in numbers if s.str.contains(".", literal=True).any()]:
        raise ValueError(
            f"{path}: column {quote(commas[0].name)} has decimal commas, as {quote(first)}, but column "
            f"{quote(points[0].name)} has decimal points: write points in both"
        )
    chosen = {s.name for s in commas}
    return [s.str.replace(",", ".", literal=True) if s.name in chosen else s for s in columns]


def _typed(series: pl.Series) -> pl.Series:
    """Return texts as integers, real numbers or booleans where all of a column are; else unchanged."""
    missing = series.null_count()
    if missing == series.len():
        return series
    for dtype in (pl.Int64, pl.Float64):
        numbers = series.cast(dtype, strict=False)
        if numbers.null_count() == missing:
            return numbers
    lower = series.str.to_lowercase()
    return lower == "true" if lower.drop_nulls().is_in(["true", "false"]).all() else series


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
