"""Tables from strangers, read in a process of their own.

The native readers of Parquet, Arrow and JSON abort the process, or take any amount of memory, on damaged files. They
therefore run in a child process with limits of memory and CPU time, which hands the rows over in pieces of Arrow. This
takes 0.2 s for each file. CSV as plain text has no lengths that can lie: it is read in this process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from loglik.data import frames
from loglik.data.limits import Stream, check_bytes, max_bytes, reading, too_large
from loglik.data.picture_columns import HasPictures, picture_columns, pictures

__all__ = ["TooMany", "blocks", "check_table", "main", "picture_blocks", "read_frame"]

PIECE = 2**22  # cells handed over at once
FRAME, ERROR, PICTURES, END = b"F", b"E", b"P", b"Z"
CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from loglik.data.isolated import main; main()"
THREADS = 8  # of polars, at most: each takes memory that counts


def read_frame(path: Path, *, max_size: int | None = None) -> pl.DataFrame:
    """Read a table; the columns of a CSV file are texts.

    Args:
        max_size: bytes in memory, of a table that a child process reads; TooMany is raised if it has more.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its name is not a table's, it does not parse, or it is too large in memory.
        HasPictures: a column holds encoded images.
    """
    kind = check_table(path)
    if kind == "CSV" and not frames.is_packed(path):
        return frames.parse(path)
    pieces, total = list[pl.DataFrame](), 0.0
    for piece in _pieces(path, kind, whole=True):
        total += piece.estimated_size()
        if max_size is not None and total > max_size:
            raise TooMany
        pieces.append(piece)
    return pl.concat(pieces, rechunk=True)


class TooMany(Exception):
    """A table has more bytes in memory than were requested."""


def check_table(path: Path) -> str:
    """Return the format of a table; raise FileNotFoundError or ValueError if it is no readable table's file."""
    kind = frames.format_of(path)
    if kind is None:
        raise ValueError(f"{path}: a table is a file that ends in {', '.join(frames.FORMATS)}, or in .csv.gz")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb"):  # an error of the system names the file
        pass
    return kind


def blocks(path: Path) -> Iterator[pl.DataFrame]:
    """Yield a table in blocks, read by a child process one ahead; a CSV file's columns are texts.

    Raises ValueError if it does not parse.
    """
    yield from _pieces(path, check_table(path))


def picture_blocks(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the columns `picture`, of images' bytes, and `label`, if two columns are named, of a Parquet file."""
    yield from _pieces(path, check_table(path), pictured=columns)


def _pieces(path: Path, kind: str, *, whole: bool = False, pictured: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table in pieces, which a child process reads, lazily unless `whole`."""
    limit = max_bytes(path.stat().st_size)
    words = [json.dumps(sys.path), str(path), json.dumps(whole), str(limit), json.dumps(list(pictured))]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(min(THREADS, os.cpu_count() or 1)), "RUST_BACKTRACE": "0"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # panics of the reader write there
        env=environment,
    )
    assert child.stdout is not None
    try:
        while True:
            tag, content = _receive(child.stdout)
            if tag == FRAME:
                with reading(path, f"{kind} file"):
                    yield pl.read_ipc(io.BytesIO(content))
            elif tag == ERROR:
                raise ValueError(content.decode())
            elif tag == PICTURES:
                raise HasPictures(path, json.loads(content))
            elif tag == END:
                return
            else:
                raise ValueError(f"{path}: not a readable {kind} file ({_end_of(child, limit)})")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _end_of(child: subprocess.Popen[bytes], limit: int) -> str:
    """Return why a child process ended early."""
    status = child.wait()
    if status == -getattr(signal, "SIGXCPU", 0):  # Windows has none
        return "its reader took too long"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
    return f"its reader ended with {name}: the file is damaged, or {too_large('needs more memory', limit)}"


def _receive(stream: Stream) -> tuple[bytes, bytes]:
    """Return the tag and the content of the next message; an empty tag if there is none."""
    head = stream.read(9)
    length = int.from_bytes(head[1:], "little")
    content = stream.read(length) if len(head) == 9 else b""
    return (head[:1], content) if len(head) == 9 and len(content) == length else (b"", b"")


def _send(stream: Stream, tag: bytes, content: bytes | memoryview) -> None:
    stream.write(tag + len(content).to_bytes(8, "little"))
    stream.write(content)


# --- in the child process ---------------------------------------------------------------------------------------------


def main() -> None:
    """Read the table that the command line names, and write its rows to the standard output in messages."""
    path, limit = Path(sys.argv[2]), int(sys.argv[4])
    whole, pictured = (json.loads(sys.argv[i]) for i in (3, 5))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # nothing else goes there
        _restrict(limit, path.stat().st_size)
        try:
            if not pictured and (columns := picture_columns(path)):
                _send(out, PICTURES, json.dumps(columns).encode())
                return
            if pictured:
                found = pictures(path, pictured)
            else:
                found = _parsed(path, limit) if whole else _scanned(path)
            for piece in found:
                content = io.BytesIO()
                piece.write_ipc(content)
                _send(out, FRAME, content.getbuffer())
            _send(out, END, b"")
        except (ValueError, OSError) as error:
            _send(out, ERROR, str(error).encode())
        except MemoryError:
            _send(out, ERROR, f"{path}: {too_large('needs more memory', limit)}".encode())


def _parsed(path: Path, limit: int) -> Iterator[pl.DataFrame]:
    frame = frames.parse(path, limit)
    check_bytes(_size_of(frame), path.stat().st_size, path)
    yield from frame.iter_slices(max(1, PIECE // max(1, frame.width))) if frame.height else [frame]


def _scanned(path: Path) -> Iterator[pl.DataFrame]:
    total, on_disk = 0, path.stat().st_size
    for frame in frames.scan(path, PIECE):
        total += _size_of(frame)
        check_bytes(total, on_disk, path, in_memory=False)
        yield from frame.iter_slices(max(1, PIECE // max(1, frame.width)))


def _restrict(limit: int, size: int) -> None:
    """Limit this process's memory to twice the limit of the data, and its CPU time to 5 s and 1 s a megabyte."""
    try:
        import resource
    except ImportError:  # Windows
        return
    pl.select(pl.lit(0))  # starts the threads, whose memory is not the file's
    used = _used()
    if used is not None and hasattr(resource, "RLIMIT_DATA"):
        most = used + size + 2 * limit + 2**27
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    seconds = 5 + size // 10**6
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _used() -> int | None:
    """Return the bytes that RLIMIT_DATA counts; None on systems other than Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmData:")), None)


def _size_of(frame: pl.DataFrame) -> int:
    """Return the bytes of the cells: a few bytes on disk may stand for many equal cells."""
    strings = [series.str.len_bytes().sum() for series in frame.iter_columns() if series.dtype == pl.String]
    return 4 * frame.height * max(1, frame.width) + sum(map(int, strings))
