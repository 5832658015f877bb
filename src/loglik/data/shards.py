"""Images in tar shards, as WebDataset writes them: KEY.png (or .jpg, .webp, ...) beside KEY.cls or KEY.json.

A key is a member's path up to the first dot of its last part; members of one key follow each other. `.cls` holds the
label; `.json` an object with it, under `label`, `class` or `cls`, or a name of the user's. Other members are skipped.
Shards are read from their beginning to their end; nothing is extracted to disk.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from loglik.data.dataset import Data
from loglik.data.image_sets import ImageSet, load_image_set
from loglik.data.image_settings import ImageSettings
from loglik.data.limits import TooLarge, quote, reading, shorten, some
from loglik.data.pixels import Label, Sample, opened
from loglik.data.spec import DataSpec

__all__ = ["load_shards"]

MEMBER = 2**28  # bytes of an image's file, at most
LABEL = 2**20  # bytes of a label's file, at most
LABELS = ("label", "class", "cls")  # of a .json object
SPLIT = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.I)


def load_shards(
    paths: dict[str, list[Path]],
    *,
    name: str,
    where: str,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    settings: ImageSettings | None = None,
) -> Data:
    """Read the images of tar shards.

    Args:
        paths: the shards of `train`, and of `validation` and `test` where they exist. Where all are of `train` and
            each file's name begins with a split's (`train-000.tar`, `val-000.tar`), they are of these splits.
        where: begins each error.
        label: the name in .json objects that has the label.

    Raises:
        ValueError: a shard is damaged, or contains links, devices or paths that lead out of it; a label is not
            readable; and as for other images.
    """
    if like is not None and not like.classes:
        label = None  # which is not needed
    splits = _by_name(paths["train"]) if set(paths) == {"train"} else paths
    files = [(split, path) for split, members in splits.items() for path in members]

    def samples() -> Iterator[Sample]:
        for split, path in files:
            yield from _samples(path, split, label)

    images = ImageSet(
        name,
        where,
        samples,
        on_disk=sum(path.stat().st_size for _, path in files),
        files=[path for _, path in files],
        settings=[[split for split, _ in files], label],
        label=label,
    )
    data = load_image_set(images, seed=seed, like=like, settings=settings)
    if label is not None and like is None and not data.spec.classes:
        raise ValueError(
            f"{where}: no .json member has {quote(label)}: leave the label out, and .cls members are labels"
        )
    return data


def _by_name(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return shards by the split that each name begins with; all as `train` unless every name does."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in paths:
        if (match := SPLIT.match(path.name)) is None:
            return {"train": list(paths)}
        word = match[1].lower()
        found["validation" if word.startswith("val") else word].append(path)
    return {split: members for split, members in found.items() if members} if found["train"] else {"train": list(paths)}


class _Member(NamedTuple):
    key: str
    suffix: str
    content: bytes


def _samples(path: Path, split: str, label: str | None) -> Iterator[Sample]:
    """Yield the images of a shard with their labels."""
    key, image, found = "", b"", None
    extensions = Image.registered_extensions()
    for member in _members(path):
        if member.key != key:
            if image:
                yield _sample(path, key, image, found, split)
            elif found is not None:
                raise ValueError(f"{path}: {shorten(key)} has a label, but no image")
            key, image, found = member.key, b"", None
        if member.suffix in extensions:
            if image:
                raise ValueError(f"{path}: {shorten(key)} has two images: its name up to the first dot must be its own")
            image = member.content
        elif (value := _label(path, member, label)) is not None:
            if found is not None and value != found:
                raise ValueError(f"{path}: {shorten(key)} has two labels, {quote(found)} and {quote(value)}")
            found = value
    if image:
        yield _sample(path, key, image, found, split)


def _sample(path: Path, key: str, image: bytes, label: Label, split: str) -> Sample:
    return Sample(f"{path}: {shorten(key)}", partial(opened, image), 1024 + len(image), label, split)


def _members(path: Path) -> Iterator[_Member]:
    """Yield the files in a shard that can be images or labels; raise ValueError for what no shard has."""
    wanted = {".cls", ".json", *Image.registered_extensions()}
    with reading(path, "tar file"):
        archive = tarfile.open(path, "r|")  # noqa: SIM115
    with archive:
        while True:
            with reading(path, "tar file"):
                info = archive.next()
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
            if info is None:
                with path.open("rb") as raw:  # tarfile also ends where a header is cut off or damaged
                    raw.seek(archive.offset)
                    if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                        raise ValueError(
                            f"{path}: not a readable tar file (damaged or cut off after {archive.offset:,} bytes)"
                        )
                return
            name = info.name
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{path}: {quote(name)} leads out of the archive")
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise ValueError(f"{path}: {quote(name)} is a link, a device or a sparse file: a shard has files only")
            folder, _, last = name.rpartition("/")
            stem, _, suffix = last.partition(".")
            suffix = f".{suffix.rpartition('.')[2].lower()}"
            if not stem or suffix not in wanted:
                continue
            with reading(path, "tar file"):
                limit = LABEL if suffix in (".cls", ".json") else MEMBER
                if info.size > limit:
                    raise TooLarge(f"{quote(name)} has {info.size:,} bytes; at most {limit:,} are read")
                file = archive.extractfile(info)
                assert file is not None
                content = file.read()
            if len(content) < info.size:
                raise ValueError(f"{path}: not a readable tar file ({quote(name)} is cut off)")
            yield _Member(f"{folder}/{stem}" if folder else stem, suffix, content)


def _label(path: Path, member: _Member, label: str | None) -> Label:
    """Return the label that a .cls or .json member holds; None if a .json object has none."""
    with reading(f"{path}: {shorten(member.key + member.suffix)}", "label"):
        text = member.content.decode()
        if member.suffix == ".cls":
            return None if label else text.strip()
        plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: {shorten(member.key)}.json holds no object with the label")
    names = [name for name in ([label] if label else LABELS) if name in plain]
    if not names:
        if label:
            raise ValueError(f"{path}: {shorten(member.key)}.json has no {quote(label)}; found {some(list(plain))}")
        return None
    value = plain[names[0]]
    if not isinstance(value, str | int):
        raise ValueError(f"{path}: {shorten(member.key)}.json: the label {quote(value)} is no string or integer")
    return value if isinstance(value, bool) else str(value)
