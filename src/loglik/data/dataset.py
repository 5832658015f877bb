"""A data set: a spec and three splits, each one tensor of examples (or windows of a text) and perhaps one of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from loglik.data.spec import DataSpec, Kind
from loglik.data.windows import Windows

if TYPE_CHECKING:
    from loglik.data.text import TextSettings

__all__ = ["Data", "Split", "check_kind", "into_splits"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Examples `x` of shape (N, *event_shape), their labels `y` (N,) if they have labels, and where they
    stood in the input: `index` (N,), None where the order is the input's.

    A text's examples are `Windows`, which are indexed as a tensor is and read from a file.
    """

    x: Shaped[Tensor, "N ..."] | Windows
    y: Int64[Tensor, " N"] | None = None
    index: Int64[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> int:
        """How many examples, or tokens of a text."""
        return len(self.x.stream) if isinstance(self.x, Windows) else len(self)

    def tensor(self) -> Shaped[Tensor, "N ..."]:
        """All examples in memory."""
        return self.x if isinstance(self.x, Tensor) else self.x[:]


@dataclass(frozen=True)
class Data:
    """A named data set with its spec and its training, validation and test splits.

    `source` is where `load` found it, a name or an absolute path; None for data in memory. Of a text, `whole` is all
    of it in windows side by side, and `text` how it was read.
    """

    name: str
    spec: DataSpec
    train: Split
    validation: Split
    test: Split
    source: str | None = None
    whole: Split | None = None
    text: TextSettings | None = None

    @property
    def held_out(self) -> str:
        """The name of the split that a trained model is judged on: test, or validation if there is no test split."""
        return "test" if len(self.test) else "validation"

    def describe(self) -> str:
        """Its name, what it holds and how much of it, in one line."""
        sizes = f"{self.train.size:,} to train on, {self.test.size:,} to test on"
        if self.whole is not None:  # a text
            sizes = f"{self.train.size:,} tokens to train on, {self.validation.size:,} to validate, "
            sizes += f"{self.test.size:,} to test on"
        return f"{self.name}: {self.spec.describe()}; {sizes}"

    def split(self, name: str) -> Split:
        """One split by name, or `all`: every example once, in the order of the input."""
        if name == "all":
            return self._whole()
        if name not in SPLITS:
            raise ValueError(f"no split named {name!r}: use train, validation, test or all")
        return getattr(self, name)

    def _whole(self) -> Split:
        if self.whole is not None:
            return self.whole
        parts = [self.train, self.validation, self.test]
        x = torch.cat([s.tensor() for s in parts])
        y = None if self.train.y is None else torch.cat([s.y for s in parts if s.y is not None])
        if any(s.index is None for s in parts):
            return Split(x, y)
        index = torch.cat([s.index for s in parts if s.index is not None])
        order = index.argsort()
        return Split(x[order], None if y is None else y[order], index[order])


def check_kind(kind: Kind, like: DataSpec | None, source: str) -> None:
    """Raise ValueError if data of this kind cannot go into the model of the spec `like`."""
    if like is not None and like.kind != kind:
        words = {
            "image": "these are images",
            "table": "this is a table",
            "array": "this is an array",
            "text": "this is text",
        }[kind]
        raise ValueError(f"{source}: {words}, but the model takes {like.describe()}")


def into_splits(
    name: str,
    spec: DataSpec,
    x: Shaped[Tensor, "N ..."],
    y: Int64[Tensor, " N"] | None,
    *,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> Data:
    """Cut examples into 80% training, 10% validation and 10% test, by a permutation that `seed` fixes.

    Args:
        sizes: how many examples each given split has, in the order in which they stand in x; a split
            that is not given is cut from the training examples, a tenth of them, and is empty where they are fewer
            than ten: `fit` refuses such data, an existing model evaluates them.
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
    cut = {s: Split(x[rows[s]], None if y is None else y[rows[s]], rows[s]) for s in SPLITS}
    return Data(name, spec, cut["train"], cut["validation"], cut["test"])
