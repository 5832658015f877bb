"""Text as one stream of tokens in a file, seen through windows of T tokens.

The text is cut by position, in bytes, so that it is cut at the same places whatever the tokenizer: training first,
then validation, then test. Each part is tokenised once, to a cache that is keyed by path, size, time of change and
tokenizer; bytes of one file are read from that file itself. Training windows overlap: one begins at each token.
Validation and test windows stand side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from loglik.data import tokenizers
from loglik.data.dataset import SPLITS, Data, TextSplit, check_kind
from loglik.data.spec import DataSpec
from loglik.data.text_settings import TextSettings
from loglik.data.tokenizers import Bytes, Tokenizer
from loglik.data.windows import Stream, Windows

__all__ = ["is_text", "load_text", "user_cache"]

BLOCK = 2**20  # bytes tokenised at once
WINDOW = 128
UNITS = {"bytes": "bytes", "characters": "characters", "bpe": "tokens"}


class _Source:
    """The bytes of files, or of strings in memory, one after another."""

    def __init__(self, parts: Sequence[Path | bytes], name: str) -> None:
        self.parts, self.name = parts, name
        self.sizes = [len(part) if isinstance(part, bytes) else part.stat().st_size for part in parts]
        self.begins = [0, *accumulate(self.sizes)][:-1]
        self.size = sum(self.sizes)

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        for number in range(max(0, bisect_right(self.begins, start) - 1), len(self.parts)):
            part, begin = self.parts[number], self.begins[number]
            first, last = max(start - begin, 0), min(stop - begin, self.sizes[number])
            if begin >= stop:
                break
            if isinstance(part, bytes):
                pieces.append(part[first:last])
            elif first < last:
                with part.open("rb") as file:
                    file.seek(first)
                    pieces.append(file.read(last - first))
        return b"".join(pieces)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Where it begins, and a piece of about BLOCK bytes: whole lines, or whole characters if lines are long."""
        while start < stop:
            block = self.read(start, min(start + BLOCK, stop))
            if not block:
                raise ValueError(f"{self.name}: the text became shorter while it was read")
            if start + len(block) < stop:
                end = block.rfind(b"\n") + 1 or block.rfind(b" ") or len(block)
                block = block[: end if end > 0 else len(block)]
                block = block[: self.character(start + len(block), back=True) - start]
            yield start, block
            start += len(block)

    def character(self, at: int, *, back: bool = False) -> int:
        """The nearest place, `at` or after it (or before it), that is not within a character in UTF-8."""
        for offset in range(4):
            place = at - offset if back else at + offset
            byte = self.read(place, place + 1)
            if not byte or byte[0] & 0xC0 != 0x80:
                return place
        return at  # not UTF-8: any place will do

    def where(self, at: int) -> str:
        """The file, line and byte of a place, in words."""
        number = 0
        while at >= self.sizes[number] and number + 1 < len(self.parts):
            at, number = at - self.sizes[number], number + 1
        part = self.parts[number]
        line = 1 + sum(piece.count(b"\n") for _, piece in _Source([part], self.name).pieces(0, at))
        return f"{self.name if isinstance(part, bytes) else part}: line {line}, byte {at}"


def is_text(path: Path) -> bool:
    """Whether a file's first 64 KiB hold no zero byte."""
    with path.open("rb") as file:
        return b"\0" not in file.read(65_536)


def user_cache() -> Path:
    """Where tokens are kept if no run is written: $LOGLIK_CACHE, or a folder in the user's cache."""
    own = os.environ.get("LOGLIK_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loglik"


def load_text(
    files: Mapping[str, Sequence[Path | bytes]],
    *,
    name: str,
    where: str,
    like: DataSpec | None = None,
    settings: TextSettings | None = None,
    cache: Path | None = None,
) -> Data:
    """Text files (or strings in memory), for the split `train` and perhaps `validation` and `test`.

    Args:
        where: begins each error.
        like: the spec of an existing model, whose tokenizer and window are taken.
        settings: how to read the text.
        cache: the folder that keeps the tokens of files; the user's own if None.

    Raises:
        ValueError: the text is empty, too short for a window in each split, or holds what the tokenizer cannot take.
    """
    check_kind("text", like, where)
    settings = settings or TextSettings()
    t = like.event_shape[0] if like else settings.window or WINDOW
    sources = {split: _Source(parts, where) for split, parts in files.items()}
    if not any(source.size for source in sources.values()):
        raise ValueError(f"{where}: the text is empty")
    cuts = _cuts(sources, settings)
    wanted = None if like is None else _tokenizer_of(like, where)
    tokenizer, stream, counts = _tokens(sources, cuts, settings, wanted, cache or user_cache())
    if sum(counts.values()) < t if like else any(counts[s] < t for s in SPLITS if _asked(s, cuts)):
        got = ", ".join(f"{counts[s]:,} for {s}" for s in SPLITS)
        raise ValueError(
            f"{where}: {len(stream):,} {UNITS[tokenizer.kind]} are too short for a window of {t} in each split "
            f"({got}): give more text or a shorter window (window=N)"
        )
    ends = np.cumsum([0, *(counts[split] for split in SPLITS)]).tolist()
    train, validation, test = (
        TextSplit(Windows(stream.cut(start, stop), t, 1 if split == "train" else t))
        for split, start, stop in zip(SPLITS, ends, ends[1:], strict=False)
    )
    spec = like or DataSpec(kind="text", event_shape=(t,), levels=tokenizer.size, tokenizer=tokenizer)
    full = TextSplit(Windows(stream, t, t))
    return Data(name, spec, train, validation, test, full=full, text=settings)


Cuts = dict[str, tuple[str, int, int]]  # of each split: the source it is cut from, and its first and last byte


def _cuts(sources: Mapping[str, _Source], settings: TextSettings) -> Cuts:
    """Where each split begins and ends; a split without a source of its own is cut from the training text."""
    fractions = dict(zip(SPLITS, settings.fractions(), strict=True))
    whole = sources["train"]
    missing = [split for split in ("validation", "test") if split not in sources]
    end = round(1 - sum(fractions[split] for split in missing), 12)
    edges = [0, whole.character(int(whole.size * end))]
    for split in missing:
        end = round(end + fractions[split], 12)
        edges.append(max(edges[-1], whole.character(int(whole.size * end))))
    cuts = {"train": ("train", 0, edges[1])}
    cuts |= {split: ("train", edges[i], edges[i + 1]) for i, split in enumerate(missing, 1)}
    cuts |= {split: (split, 0, sources[split].size) for split in sources if split != "train"}
    return cuts


def _asked(split: str, cuts: Cuts) -> bool:
    """Whether a split was to have something, even if too little."""
    _, start, stop = cuts[split]
    return split == "train" or stop > start


def _tokenizer_of(spec: DataSpec, where: str) -> Tokenizer:
    if spec.tokenizer is None:
        raise ValueError(f"{where}: the model takes {spec.describe()} without a tokenizer: it cannot read text")
    return spec.tokenizer


def _tokens(
    sources: Mapping[str, _Source], cuts: Cuts, settings: TextSettings, wanted: Tokenizer | None, cache: Path
) -> tuple[Tokenizer, Stream, dict[str, int]]:
    """The tokenizer, all splits' tokens one after another, and how many each has; from the cache if they are there."""
    paths = [part for source in sources.values() for part in source.parts if isinstance(part, Path)]
    kind = wanted.kind if wanted else settings.tokenizer
    if kind == "bytes" and len(paths) == 1 and len(sources) == 1:  # the file is its own tokens
        counts = {split: stop - start for split, (_, start, stop) in cuts.items()}
        return Bytes(), Stream(paths[0], "uint8", 0, sources["train"].size), counts
    if not paths:
        tokenizer = wanted or _train(sources, cuts, settings)
        parts = {s: list(_encode(sources, cuts, s, tokenizer)) for s in SPLITS}
        every = [block for s in SPLITS for block in parts[s]]
        tokens = np.concatenate(every) if every else np.empty(0, _dtype(tokenizer))
        return (
            tokenizer,
            Stream(tokens, _dtype(tokenizer), 0, len(tokens)),
            {s: sum(map(len, parts[s])) for s in SPLITS},
        )
    return _cached(sources, cuts, settings, wanted, paths, cache)


def _cached(
    sources: Mapping[str, _Source],
    cuts: Cuts,
    settings: TextSettings,
    wanted: Tokenizer | None,
    paths: Sequence[Path],
    cache: Path,
) -> tuple[Tokenizer, Stream, dict[str, int]]:
    """KEY.bin holds the tokens and KEY.json, written last, the tokenizer and the counts."""
    which = _digest([str(path.resolve()) for path in paths])
    state = _digest([(path.stat().st_size, path.stat().st_mtime_ns) for path in paths])
    places = [[split, *cuts[split]] for split in SPLITS]
    request = [settings.tokenizer, settings.vocabulary if settings.tokenizer == "bpe" else None]
    for file in sorted(cache.glob(f"{which}-{state}-*.json")):
        with suppress(ValueError, KeyError, OSError):
            found = json.loads(file.read_text(encoding="utf-8"))
            tokenizer, counts = tokenizers.from_dict(found["tokenizer"]), found["counts"]
            alike = tokenizer == wanted if wanted else found["request"] == request
            if alike and found["cuts"] == places:
                return tokenizer, Stream(file.with_suffix(".bin"), _dtype(tokenizer), 0, sum(counts.values())), counts
    tokenizer = wanted or _train(sources, cuts, settings)
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{which}-{state}-{_digest([tokenizer.to_dict(), places])}.bin"
    partial = file.with_suffix(f".{os.getpid()}.partial")
    counts = dict.fromkeys(SPLITS, 0)
    try:
        with partial.open("wb") as out:
            for split in SPLITS:
                for block in _encode(sources, cuts, split, tokenizer):
                    out.write(block.tobytes())
                    counts[split] += len(block)
        partial.replace(file)
        about = {
            "request": None if wanted else request,
            "cuts": places,
            "counts": counts,
            "tokenizer": tokenizer.to_dict(),
        }
        partial.write_text(json.dumps(about), encoding="utf-8")
        partial.replace(file.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)
    return tokenizer, Stream(file, _dtype(tokenizer), 0, sum(counts.values())), counts


def _train(sources: Mapping[str, _Source], cuts: Cuts, settings: TextSettings) -> Tokenizer:
    """Characters are those of all splits, so that each has a probability; pairs are counted in training text alone."""
    kind = settings.tokenizer
    every = sources if kind == "characters" else {"train": sources["train"]}
    if kind == "characters":
        alphabet: set[str] = set()
        for source in every.values():
            if source.size:
                pieces = (piece for _, piece in source.pieces(0, source.size))
                found = tokenizers.train(kind, pieces, where=source.where)
                alphabet.update(found.characters)  # type: ignore[attr-defined]
        return tokenizers.Characters("".join(sorted(alphabet)))
    _, start, stop = cuts["train"]
    pieces = (piece for _, piece in sources["train"].pieces(start, stop))
    return tokenizers.train(kind, pieces, vocabulary=settings.vocabulary, where=sources["train"].where)


def _encode(sources: Mapping[str, _Source], cuts: Cuts, split: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    name, start, stop = cuts[split]
    source = sources[name]
    for begin, piece in source.pieces(start, stop):
        tokens = tokenizer.encode(piece, lambda at, begin=begin: source.where(begin + at))  # type: ignore[misc]
        yield tokens.astype(_dtype(tokenizer))


def _dtype(tokenizer: Tokenizer) -> str:
    return "uint8" if tokenizer.size <= 256 else "uint16"


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
