"""The names of arrays in .npz files and dictionaries: which hold examples, which labels, and of which split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from loglik.data.limits import quote, some

__all__ = ["EXAMPLES", "LABELS", "is_examples", "label_key", "named_splits"]

EXAMPLES = ("image", "images", "img", "imgs", "x", "data")
LABELS = ("label", "labels", "y", "target", "targets")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
WITH_SPLIT = re.compile(rf"(?:({'|'.join(SPLITS)})[_-])?(.+?)(?:[_-]({'|'.join(SPLITS)}))?", re.I)


def is_examples(key: str) -> bool:
    """Return whether a key is a name for examples, alone or with a split's name.

    >>> is_examples("X_train"), is_examples("index")
    (True, False)
    """
    return _parts(key)[1].lower() in EXAMPLES


def label_key(keys: Sequence[str], label: str | None, where: str, *, strict: bool = True) -> str | None:
    """Return the key of an item's label: `label`, or one of the usual names; None if there is none.

    Raises ValueError if there is no key `label` and it is strict. It is not where a run's own name for its labels is
    looked for in other data.
    """
    if label is not None and strict and label not in keys:
        raise ValueError(f"{where}: no {quote(label)} for the label; found {some(list(keys))}")
    return next((name for name in (label, *LABELS) if name in keys), None)


def named_splits(
    keys: Sequence[str], label: str | None, where: Path | str, *, strict: bool = True
) -> dict[str, tuple[str, str | None]]:
    """Return the key of the examples and of the labels of each split.

    Keys are `x`, `images` and the like and `y`, `labels` and the like or `label`, each alone or with a split's name:
    `x_train`, `test_images`. One key alone may have any name.

    Raises ValueError if keys are unknown, double, or missing; `label` may be missing if it is not strict.

    >>> named_splits(["train_images", "train_labels", "test_images", "test_labels"], None, "a.npz")
    {'train': ('train_images', 'train_labels'), 'test': ('test_images', 'test_labels')}
    """
    if label is not None and not any(label in (key, _parts(key)[1]) for key in keys):
        if not strict:
            return named_splits(keys, None, where)
        raise ValueError(f"{where}: no array {quote(label)} for the label; found the keys {some(sorted(keys))}")
    if len(keys) == 1 and label is None:
        return {"train": (keys[0], None)}
    found: dict[str, dict[str, str]] = {split: {} for split in ("train", "validation", "test")}
    for key in keys:
        split, name = _parts(key)
        is_label = label in (key, name) if label else name.lower() in LABELS
        kind = "y" if is_label else "x" if name.lower() in EXAMPLES else ""
        if not kind or kind in found[split]:
            raise ValueError(_unclear(keys, where))
        found[split][kind] = key
    named = {split: names for split, names in found.items() if names}
    if "x" not in found["train"] or len({frozenset(names) for names in named.values()}) > 1:
        raise ValueError(_unclear(keys, where))
    return {split: (names["x"], names.get("y")) for split, names in named.items()}


def _parts(key: str) -> tuple[str, str]:
    """Return the split that a key names, train by default, and the rest of its name."""
    match = WITH_SPLIT.fullmatch(key)
    before, name, after = match.groups() if match else (None, key, None)
    if before and after:
        return "train", key
    return SPLITS[(before or after or "train").lower()], name


def _unclear(keys: Sequence[str], where: Path | str) -> str:
    return (
        f"{where}: found the keys {some(sorted(keys)) or '(none)'}; expected one array, or x and y, or x_train, "
        'y_train, x_test and y_test (images and labels will do); label="NAME" says which are the labels'
    )
