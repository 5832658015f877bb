"""A data set: a spec and three splits, each one tensor of examples (or windows of a text) and their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from loglik.data.image_settings import ImageSettings
from loglik.data.limits import quote, shorten, some
from loglik.data.spec import DataSpec, Kind
from loglik.data.store import Rows
from loglik.data.table_settings import TableSettings
from loglik.data.text_settings import TextSettings
from loglik.data.windows import Stream, Windows
from loglik.notebook import facts, table
from loglik.terminal import printable

__all__ = ["Data", "Split", "TextSplit", "check_kind", "into_splits"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The examples of a split, their labels or inputs, and their rows in the input.

    Attributes:
        x: the examples, (N, *event_shape), in memory or in a store on disk.
        y: their labels, (N,), or where the examples are targets their inputs, (N, I); None where there are none.
        index: their rows in the input, (N,); None where the order is the input's.
    """

    x: Shaped[Tensor, "N ..."] | Rows | Windows
    y: Shaped[Tensor, "N ..."] | Rows | None = None
    index: Int64[Tensor, " N"] | None = None

    unit: ClassVar[Literal["example", "token"]] = "example"  # what sizes count and scores are means over
    with_replacement: ClassVar[bool] = False  # whether training draws examples with replacement

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> int:
        """The number of units: of examples, or of a text's tokens."""
        return len(self)

    @property
    def stream(self) -> Stream | None:
        """The text that the examples are windows of; None for other data."""
        return None

    @property
    def units_per_example(self) -> int:
        """The number of units in one example: 1, or T tokens in a window of a text."""
        return 1

    def tensor(self) -> Shaped[Tensor, "N ..."]:
        """Return all examples in memory."""
        return self.x[:]

    def labels(self) -> Shaped[Tensor, "N ..."] | None:
        """Return all labels or inputs in memory; None where there are none."""
        return None if self.y is None else self.y[:]

    def batch(self, rows: Int64[Tensor, " B"]) -> tuple[Shaped[Tensor, "B ..."], Shaped[Tensor, "B ..."] | None]:
        """Return the examples of some rows and their labels or inputs, where the split is stored."""
        return _gather(self.x, rows), None if self.y is None else _gather(self.y, rows)

    def first(self, n: int) -> tuple[Shaped[Tensor, "n ..."], Shaped[Tensor, "n ..."] | None]:
        """Return the first n examples and their labels."""
        return self.x[:n], None if self.y is None else self.y[:n]

    def evenly(self, max_examples: int) -> Split:
        """Return at most `max_examples` examples, evenly spaced over the split, in memory."""
        step = math.ceil(len(self) / max_examples)
        return Split(self.x[::step], None if self.y is None else self.y[::step])

    def limit_tokens(self, max_tokens: int) -> Split:
        """Return the windows of a text's first `max_tokens` tokens; other splits as they are."""
        return self

    def to(self, device: torch.device, *, max_bytes: int) -> Split:
        """Return the split on a device if it has at most `max_bytes` bytes; else, and for a text, as it is."""
        assert not isinstance(self.x, Windows)
        if device.type == "cpu" or len(self) * self.x[:1].nbytes > max_bytes:
            return self
        return Split(self.tensor().to(device), None if self.y is None else self.y[:].to(device))


@dataclass(frozen=True)
class TextSplit(Split):
    """A split of a text: its examples are windows, which are indexed as a tensor is and read from a file."""

    x: Windows

    unit = "token"
    with_replacement = True  # windows that begin at each token are too many to permute

    @property
    def size(self) -> int:
        return len(self.x.stream)

    @property
    def stream(self) -> Stream:
        return self.x.stream

    @property
    def units_per_example(self) -> int:
        return self.x.length

    def batch(self, rows: Int64[Tensor, " B"]) -> tuple[Shaped[Tensor, "B T"], None]:
        return self.x[rows], None

    def limit_tokens(self, max_tokens: int) -> TextSplit:
        if self.size <= max_tokens:
            return self
        return TextSplit(Windows(self.stream.cut(0, max_tokens), self.x.length, self.x.stride))

    def to(self, device: torch.device, *, max_bytes: int) -> TextSplit:
        return self


@dataclass(frozen=True, repr=False)
class Data:
    """A named data set with its spec and its training, validation and test splits.

    Attributes:
        name: what pages and messages call it.
        spec: what is known of its examples.
        train, validation, test: its splits.
        source: where `load` found it, a name or an absolute path; None for data in memory.
        full: all of a text, in windows side by side; None for other data.
        text: how a text was read; None for other data.
        table: how a table was read; None for other data.
        images: how image files were read; None for other data.
        notes: what was decided in reading the data, each in one line.
    """

    name: str
    spec: DataSpec
    train: Split
    validation: Split
    test: Split
    source: str | None = None
    full: TextSplit | None = None
    text: TextSettings | None = None
    table: TableSettings | None = None
    images: ImageSettings | None = None
    notes: tuple[str, ...] = ()

    def grouped_notes(self) -> list[str]:
        """Return the notes, with one line for all columns that are read in the same way."""
        groups: dict[str, list[str]] = {}
        for note in self.notes:
            _, colon, text = note.partition(": ") if note.startswith("column ") else ("", "", "")
            groups.setdefault(text.partition(", as ")[0] if colon and ", as " in text else note, []).append(note)
        lines = []
        for notes in groups.values():
            names = [note.removeprefix("column ").partition(": ")[0] for note in notes]
            text = notes[0].partition(": ")[2]
            lines.append(notes[0] if len(notes) == 1 else f"columns {some(names, 3)}: {text}")
        return lines

    @property
    def scored_split(self) -> Literal["test", "validation"]:
        """The name of the split that a trained model is scored on: test, or validation if the test split is empty."""
        return "test" if len(self.test) else "validation"

    def describe(self) -> str:
        """Return one line with the name, the kind of data and the sizes of the splits."""
        sizes = f"{self.train.size:,} to train on, {self.test.size:,} to test on"
        if self.train.unit == "token":
            sizes = f"{self.train.size:,} tokens to train on, {self.validation.size:,} to validate, "
            sizes += f"{self.test.size:,} to test on"
        return f"{shorten(self.name, 200)}: {self.spec.describe()}; {sizes}"

    def __repr__(self) -> str:
        return f"Data({printable(self.describe())})"

    def _repr_html_(self) -> str:
        sizes = f"{self.describe()}; {self.validation.size:,} to validate"
        if not self.spec.columns:
            return facts({"kind": self.spec.describe(), "classes": ", ".join(self.spec.classes) or None}, caption=sizes)
        role = "target" if self.spec.inputs else "column"
        columns = [(role, column) for column in self.spec.columns] + [("input", c) for c in self.spec.inputs]
        rows = [
            (c.name, role, c.temporal or c.type, some(list(c.categories)), "yes" if c.missing else "")
            for role, c in columns
        ]
        return table(("name", "role", "type", "categories", "missing"), rows, caption=sizes)

    def split(self, name: str) -> Split:
        """Return a split by its name; `all` is every example once, in the order of the input."""
        if name == "all":
            return self._all()
        if name not in SPLITS:
            raise ValueError(f"no split named {quote(name)}: use train, validation, test or all")
        return getattr(self, name)

    def _all(self) -> Split:
        if self.full is not None:
            return self.full
        parts = [self.train, self.validation, self.test]
        y = None if self.train.y is None else _joined([s.y for s in parts if s.y is not None])
        x = _joined([s.x for s in parts])
        if any(s.index is None for s in parts):
            return Split(x, y)
        index = torch.cat([s.index for s in parts if s.index is not None])
        order = index.argsort()
        return Split(_select(x, order), None if y is None else _select(y, order), index[order])


def check_kind(kind: Kind, like: DataSpec | None, source: str) -> None:
    """Raise ValueError if a model of the spec `like` does not accept data of this kind."""
    if like is not None and like.kind != kind:
        words = {
            "image": "these are images",
            "table": "this is a table",
            "array": "this is an array",
            "text": "this is text",
        }[kind]
        raise ValueError(f"{source}: {words}, but the model accepts {like.describe()}")


def into_splits(
    name: str,
    spec: DataSpec,
    x: Shaped[Tensor, "N ..."] | Rows,
    y: Int64[Tensor, " N"] | None,
    *,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> Data:
    """Cut examples into 80% training, 10% validation and 10% test, by a permutation that `seed` fixes.

    Args:
        sizes: the number of examples of each split that exists already, in the order of x. A split that is not in
            `sizes` is a tenth of the training examples. It is empty where they are fewer than ten: `fit` refuses such
            data, and an existing model scores them.
    """
    sizes = sizes or {"train": len(x)}
    ends = dict(zip(sizes, torch.tensor(list(sizes.values())).cumsum(0).tolist(), strict=True))
    rows = {split: torch.arange(ends[split] - sizes[split], ends[split]) for split in sizes}
    missing = [split for split in SPLITS if split not in rows]
    n = len(rows["train"])
    if missing:
        rows["train"] = rows["train"][torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    for split in missing:
        rows[split], rows["train"] = rows["train"][: n // 10], rows["train"][n // 10 :]
    cut = {s: Split(_select(x, rows[s]), None if y is None else y[rows[s]], rows[s]) for s in SPLITS}
    return Data(name, spec, cut["train"], cut["validation"], cut["test"])


def _gather(x: Tensor | Rows | Windows, rows: Int64[Tensor, " B"]) -> Shaped[Tensor, "B ..."]:
    """Return a copy of some rows."""
    if not isinstance(x, Tensor):
        return x[rows]
    return x.index_select(0, rows.to(x.device))  # 3x faster than indexing


def _select(x: Tensor | Rows, rows: Int64[Tensor, " B"]) -> Tensor | Rows:
    """Return rows of examples; those in a store are not read."""
    return x.select(rows) if isinstance(x, Rows) else x[rows]


def _joined(parts: Sequence[Tensor | Rows | Windows]) -> Tensor | Rows:
    """Return the examples of all splits; those in a store are not read."""
    stored = [x for x in parts if isinstance(x, Rows)]
    return Rows.join(stored) if len(stored) == len(parts) else torch.cat([x[:] for x in parts])
