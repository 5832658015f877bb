"""Sources of data that are all to be refused, by kind: each maker writes files into a folder and yields the sources."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from helpers.hostile_arrays import image_bytes, image_folders, npy_files, npz_files
from helpers.hostile_tables import binary_tables, csv_files, json_files

__all__ = ["MAKERS"]


def special(folder: Path) -> Iterator[str]:
    """Sources that are no regular files."""
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.csv")
    os.mkfifo(folder / "pipe.npy")
    (folder / "pipes").mkdir()
    os.mkfifo(folder / "pipes" / "a.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket.parquet"))
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling.csv").symlink_to(folder / "nowhere.csv")
    (folder / "around").mkdir()
    (folder / "around" / "again").symlink_to(folder / "around")
    (folder / "folder.csv").mkdir()
    (folder / "folder.npy").mkdir()
    (folder / "one.png").write_bytes(image_bytes())
    (folder / "empty.txt").write_bytes(b"")
    (folder / "short.txt").write_bytes(b"hello")
    (folder / "binary").write_bytes(bytes(99))
    (folder / "archive.tar").write_bytes(bytes(10_240))
    for path in sorted(folder.iterdir()):
        yield str(path)
    yield from (
        "/dev/zero",
        "/dev/null",
        "",
        " ",
        "nowhere",
        "nowhere.csv",
        "~nobody-of-this-name/x.csv",
        "x" * 300,
        "x/" * 3000,
    )
    yield from (
        "a\0b",
        "a\nb.csv",
        "\x1b[31mred.csv",
        "digits ",
        "DIGITS",
        "hf",
        "file:///etc/passwd",
        "*",
        "-",
        "/proc/self/mem",
    )


def write(folder: Path, files: dict[str, bytes]) -> Iterator[str]:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield str(path)


def folders(folder: Path) -> Iterator[str]:
    for name, files in image_folders().items():
        (folder / name).mkdir()
        list(write(folder / name, files))
        yield str(folder / name)


MAKERS = {
    "npy": lambda folder: write(folder, npy_files()),
    "npz": lambda folder: write(folder, npz_files()),
    "images": folders,
    "csv": lambda folder: write(folder, csv_files()),
    "json": lambda folder: write(folder, json_files()),
    "tables": lambda folder: write(folder, binary_tables()),
    "special": special,
}
