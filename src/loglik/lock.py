"""One process at a time in a folder: a lock that ends with its process, and says who holds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from loglik import files

__all__ = ["LOCK_FILES", "in_use", "is_locked", "locked"]

LOCK, HOLDER = ".lock", ".holder"
LOCK_FILES = {LOCK, HOLDER}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this block; the lock of a process that was killed does not count.

    Raises BlockingIOError, at once, if another process (or thread) holds the folder: who, where and since when.
    """
    with files.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(in_use(folder)) from None
    try:
        with suppress(OSError):  # the lock holds without it
            _write_holder(folder / HOLDER)
        yield
    finally:
        for name in (HOLDER, LOCK):  # the lock's own file last, while it is held
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()


def _write_holder(path: Path) -> None:
    path.unlink(missing_ok=True)  # it may be a link
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with path.open("x", encoding="utf-8") as file:
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, file)


def is_locked(folder: Path) -> bool:
    """Return whether another process holds a folder."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def in_use(folder: Path) -> str:
    """Return one line that says who holds a folder."""
    who = "another process"
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads((folder / HOLDER).read_bytes()[:1000])
        who = f"process {int(found['process'])} on {found['host']:.100} since {found['since']:.40}"
    return f"{folder} is in use by {who}: wait until it ends, or choose another out="
