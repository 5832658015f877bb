"""Sets of encoded images, from wherever they come: decoded into memory, or once into a store on disk if they are large.

Both ways give the same pixels, labels, classes and splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from loglik.data.dataset import Data, check_kind, into_splits
from loglik.data.image_settings import ImageSettings
from loglik.data.labels import code_labels
from loglik.data.limits import check_bytes, quote
from loglik.data.pixels import Form, Label, MixedSizes, Sample, decode, decoded_bytes, upright_size
from loglik.data.spec import DataSpec
from loglik.data.store import Rows, Writer, is_large, stored, temporary

__all__ = ["Found", "ImageSet", "load_image_set"]

MAX_CLASSES = 65_536
MOST = 0.9  # of the images have the size that the others get, unless a setting says another


@dataclass(frozen=True)
class ImageSet:
    """Encoded images that are read in order.

    Attributes:
        name: of the data.
        where: begins each error.
        samples: iterates the images: those of the split train, then validation and test if they exist.
        on_disk: the bytes of all files; 0 if it is not known.
        files: whose paths, sizes and times of change identify the images.
        settings: how the files are read, in plain values.
        count: the number of images, where it is known.
        classes: the names of the labels 0, 1, ..., where they are known.
        label: the name that the user gave for the labels; None for a usual name, or for folders.
        lasting: whether the images can be found again, by `files` or by `settings`.
    """

    name: str
    where: str
    samples: Callable[[], Iterator[Sample]]
    on_disk: int
    files: Sequence[Path] = ()
    settings: Any = None
    count: int | None = None
    classes: Sequence[str] | None = None
    label: str | None = None
    lasting: bool = True


@dataclass
class Found:
    """What is found as images are read: each label is a number into `labels`, which lists the distinct ones."""

    labels: list[Label] = field(default_factory=list)
    first: list[int] = field(default_factory=list)  # the row of each label's first image
    sizes: dict[str, int] = field(default_factory=dict)  # images of each split
    rows: int = 0
    unlabelled: str = ""  # the first image without a label
    facts: dict[str, int] = field(default_factory=dict)  # images that were resized, turned and the like

    def __post_init__(self) -> None:
        self._codes: dict[tuple[type, Label], int] = {}

    def codes(self, block: list[Sample]) -> np.ndarray:
        """Return the numbers of a block's labels, -1 where there is none."""
        codes = np.empty(len(block), np.int32)
        for i, sample in enumerate(block):
            self.sizes[sample.split] = self.sizes.get(sample.split, 0) + 1
            codes[i] = self._code(sample)
            self.rows += 1
        return codes

    def _code(self, sample: Sample) -> int:
        if sample.label is None:
            self.unlabelled = self.unlabelled or sample.name
            return -1
        key = type(sample.label), sample.label  # True is not 1
        if key not in self._codes:
            if len(self.labels) == MAX_CLASSES:
                raise ValueError(
                    f"{sample.name}: the label {quote(sample.label)} is one of over {MAX_CLASSES:,} classes"
                )
            self._codes[key] = len(self.labels)
            self.labels.append(sample.label)
            self.first.append(self.rows)
        return self._codes[key]


def load_image_set(
    images: ImageSet, *, seed: int = 0, like: DataSpec | None = None, settings: ImageSettings | None = None
) -> Data:
    """Decode images, or map the store of those that were decoded before.

    Raises:
        ValueError: there are no images; one is damaged, too large or 16-bit; their sizes differ and no size is set;
            only some have labels; the images do not fit `like`; there is too little room on disk.
    """
    check_kind("image", like, images.where)
    settings = settings or ImageSettings()
    form = Form.of(settings, like)
    try:
        x, codes, found = _read(images, form, like)
    except MixedSizes:
        form = replace(form, size=_common_size(images))
        x, codes, found = _read(images, form, like)
    if like is not None and tuple(x.shape[1:]) != like.event_shape:
        raise ValueError(f"{images.where}: images of shape {tuple(x.shape[1:])}, the model accepts {like.event_shape}")
    if like is not None and like.levels is not None and like.levels < 256:
        _check_levels(x, like.levels, images.where)
    y, classes = _labels(found, codes, images, like)
    shape = tuple(x.shape[1:])
    spec = like or DataSpec(kind="image", event_shape=shape, levels=256, classes=classes, label=images.label)
    data = into_splits(images.name, spec, x, y, seed=seed, sizes=found.sizes)
    size = None if form.size is None else "{}x{}".format(*form.size)
    return replace(data, images=replace(settings, resize=size), notes=_notes(found, form))


def _read(images: ImageSet, form: Form, like: DataSpec | None) -> tuple[Tensor | Rows, Tensor, Found]:
    """Return pixels, the numbers of labels, and what was found."""
    with closing(iter(images.samples())) as samples:  # type: ignore[type-var]
        first = next(samples, None)
        if first is None:
            raise ValueError(f"{images.where}: no images")
        estimate, every = _estimate(first, images, form), chain([first], samples)
        if estimate is not None and not is_large(estimate):
            return _in_memory(every, images, form, like)

        def write(writer: Writer) -> None:
            _write(every, images, writer, form, like)

        channels = None if like is None else like.event_shape[0]
        settings = ["images", images.settings, form.settings.to_dict(), form.size, channels]
        store = stored(images.files, settings, write) if images.lasting else temporary(write)
        return store.rows("x"), store.tensor("y"), Found(*store.about)


def _common_size(images: ImageSet) -> tuple[int, int]:
    """Return the width and height of 90 % of the images; raise ValueError if there is no such size."""
    with closing(iter(images.samples())) as samples:  # type: ignore[type-var]
        sizes = Counter(map(upright_size, samples))
    (common, count), n = sizes.most_common(1)[0], sizes.total()
    if count >= MOST * n:
        return common
    least, most = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    raise ValueError(
        f"{images.where}: {n:,} images of {len(sizes):,} sizes, {least[0]}×{least[1]} to {most[0]}×{most[1]} pixels, "
        f"and at most {count:,} of one size: choose resize=64, or resize=64x48 as WIDTHxHEIGHT, and fit=pad or "
        "fit=stretch unless all are to be cropped"
    )


def _notes(found: Found, form: Form) -> tuple[str, ...]:
    """Return what was done to the images, in one line; nothing if they were read as they are."""
    facts, n, settings = Counter(found.facts), found.rows, form.settings
    parts = []
    if facts["resized"]:
        width, height = form.size or (0, 0)
        larger = f", {facts['enlarged']:,} of them enlarged" if facts["enlarged"] else ""
        parts.append(f"{facts['resized']:,} resized to {width}×{height} pixels by fit={settings.fit}{larger}")
    if facts["transparent"]:
        shows = "kept as a fourth channel" if settings.alpha == "keep" else f"shown on {settings.alpha}"
        parts.append(f"{facts['transparent']:,} with transparency, {shows} (alpha={settings.alpha})")
    if facts["grey"] and (facts["colour"] or settings.colour == "rgb"):
        parts.append(f"{facts['grey']:,} grey, read as RGB like the {facts['colour']:,} in colour")
    if facts["to grey"]:
        parts.append(f"{facts['to grey']:,} in colour, converted by colour=grey")
    if facts["cmyk"]:
        parts.append(f"{facts['cmyk']:,} in CMYK, converted to RGB")
    if facts["deep"]:
        parts.append(f"{facts['deep']:,} of 16 bits, read as 8 bits (value // 256)")
    if facts["turned"]:
        parts.append(f"{facts['turned']:,} turned as their EXIF data say")
    if facts["frames"]:
        parts.append(f"{facts['frames']:,} of several frames, of which the first is read")
    return (f"of {n:,} images: {'; '.join(parts)}",) if parts else ()


def _estimate(first: Sample, images: ImageSet, form: Form) -> int | None:
    """Return about the bytes of all pixels, by the header of the first image; None if it cannot be known."""
    each = decoded_bytes(first, form)
    if images.count is None:
        return each * images.on_disk // max(1, first.size) or None
    if images.lasting:
        what = f"{images.count} images like {first.name}"
        check_bytes(each * images.count, images.on_disk, what, in_memory=False)
    return each * images.count


def _blocks(
    samples: Iterable[Sample], images: ImageSet, form: Form, like: DataSpec | None, found: Found
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pixels (B, C, H, W) and the numbers of labels (B,); C is 3 from the first block in colour on."""
    channels, total, read = 1 if like is None else like.event_shape[0], 0, 0
    facts = Counter[str]()
    with closing(decode(samples, form)) as blocks:  # type: ignore[type-var]
        for block, pixels, some in blocks:
            channels = max(channels, pixels.shape[1])
            pixels = np.broadcast_to(pixels, (len(pixels), channels, *pixels.shape[2:]))
            total, read = total + pixels.size, read + sum(sample.size for sample in block)
            check_bytes(
                total, max(images.on_disk, read), f"{images.where}: {found.rows + len(block)} images", in_memory=False
            )
            facts += some
            found.facts = dict(facts)
            yield pixels, found.codes(block)


def _in_memory(
    samples: Iterable[Sample], images: ImageSet, form: Form, like: DataSpec | None
) -> tuple[Tensor, Tensor, Found]:
    found = Found()
    parts, codes = zip(*_blocks(samples, images, form, like, found), strict=True)
    shape = (found.rows, *parts[-1].shape[1:])
    on_disk = max(images.on_disk, 0 if images.lasting else int(np.prod(shape)))
    check_bytes(int(np.prod(shape)), on_disk, f"{found.rows} images like {images.where}")
    x, start = np.empty(shape, np.uint8), 0
    for part in parts:
        x[start : start + len(part)] = part  # grey blocks fill all channels
        start += len(part)
    return torch.from_numpy(x), torch.from_numpy(np.concatenate(codes)), found


def _write(samples: Iterable[Sample], images: ImageSet, writer: Writer, form: Form, like: DataSpec | None) -> None:
    found, channels = Found(), 0
    for pixels, codes in _blocks(samples, images, form, like, found):
        if channels and pixels.shape[1] != channels:
            writer.change("x", lambda grey: np.repeat(grey, 3, axis=1))
        channels = pixels.shape[1]
        writer.append(x=pixels, y=codes)
    writer.about = [found.labels, found.first, found.sizes, found.rows, found.unlabelled, found.facts]


def _labels(
    found: Found, codes: Tensor, images: ImageSet, like: DataSpec | None
) -> tuple[Int64[Tensor, " N"] | None, tuple[str, ...]]:
    """Return the code of each image's label and the names of the classes."""
    if not found.labels or (like is not None and not like.classes):
        return None, ()
    if found.unlabelled:
        raise ValueError(f"{found.unlabelled}: no label, but other images have one: label all images, or none")
    classes = images.classes if like is None else like.classes
    distinct, names = code_labels(
        np.array(found.labels), lambda i: f"{images.where}: image {found.first[i] + 1}", classes
    )
    return distinct[codes.long()], names


def _check_levels(x: Tensor | Rows, levels: int, where: str) -> None:
    for start in range(0, len(x), 4096):
        block = x[start : start + 4096]
        if int(block.max()) >= levels:
            raise ValueError(f"{where}: the value {int(block.max())} is above {levels - 1}, the highest level")
