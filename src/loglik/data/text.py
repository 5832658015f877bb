"""Text as one stream of tokens in a file, seen through windows of T tokens.

The splits are cut by position, in bytes, so that every tokenizer has the same splits: training first, then
validation, then test. Each part is tokenised once, to a cache that is keyed by path, size, time of change and
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
from loglik.data.limits import reading
from loglik.data.spec import DataSpec
from loglik.data.store import user_cache
from loglik.data.text_settings import TextSettings
from loglik.data.tokenizers import Bytes, Tokenizer
from loglik.data.windows import Stream, Windows
from loglik.files import naming

__all__ = ["TooShort", "is_text", "load_text"]

BLOCK = 2**20  # bytes tokenised at once
WINDOW = 128
UNITS = {"bytes": "bytes", "characters": "characters", "bpe": "tokens"}


class TooShort(ValueError):
    """A text has no window for each split; a model with windows of its own may accept it."""


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
        """Yield pieces of about BLOCK bytes and their positions; pieces end after lines, or characters in long ones."""
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
        """Return the nearest position from `at` on (or back) that is not inside a character in UTF-8."""
        for offset in range(4):
            position = at - offset if back else at + offset
            byte = self.read(position, position + 1)
            if not byte or byte[0] & 0xC0 != 0x80:
                return position
        return at  # not UTF-8: any position is valid

    def where(self, at: int) -> str:
        """Describe a position by file, line and byte."""
        number = 0
        while at >= self.sizes[number] and number + 1 < len(self.parts):
            at, number = at - self.sizes[number], number + 1
        part = self.parts[number]
        line = 1 + sum(piece.count(b"\n") for _, piece in _Source([part], self.name).pieces(0, at))
        return f"{self.name if isinstance(part, bytes) else part}: line {line}, byte {at}"


def is_text(path: Path) -> bool:
    """Return whether the first 64 KiB of a file contain no zero byte."""
    with reading(path, "file"), path.open("rb") as file:
        return b"\0" not in file.read(65_536)


def load_text(
    files: Mapping[str, Sequence[Path | bytes]],
    *,
    name: str,
    where: str,
    like: DataSpec | None = None,
    settings: TextSettings | None = None,
    cache: Path | None = None,
) -> Data:
    """Read text files (or strings in memory) for the split `train`, and optionally `validation` and `test`.

    Args:
        where: begins each error.
        like: the spec of an existing model, whose tokenizer and window are used.
        settings: how to read the text.
        cache: the folder for the tokens of files; the user's own if None.

    Raises:
        ValueError: the text is empty, too short for a window in each split, or has characters that the tokenizer lacks.
    """
    check_kind("text", like, where)
    settings = settings or TextSettings()
    t = like.event_shape[0] if like else settings.window or WINDOW
    sources = {split: _Source(parts, where) for split, parts in files.items()}
    if not any(source.size for source in sources.values()):
        raise ValueError(f"{where}: the text is empty")
    cuts = _cuts(sources, settings)
    required = None if like is None else _tokenizer_of(like, where)
    if like is not None and required is not None and required.elsewhere:
        return _whole_texts(sources, cuts, like, required, name, settings)
    tokenizer, stream, counts = _tokens(sources, cuts, settings, required, cache or user_cache())
    if sum(counts.values()) < t if like else any(counts[s] < t for s in SPLITS if _required(s, cuts)):
        got = ", ".join(f"{counts[s]:,} for {s}" for s in SPLITS)
        raise TooShort(
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


def _whole_texts(
    sources: Mapping[str, _Source], cuts: Cuts, like: DataSpec, tokenizer: Tokenizer, name: str, settings: TextSettings
) -> Data:
    """Return text in tokens of a model from elsewhere: each source is encoded as a whole, and cut between tokens.

    A text that is shorter than the model's window is one window.
    """
    parts: list[np.ndarray] = []
    begins: dict[str, tuple[int, np.ndarray]] = {}  # of each source: its first token, and where its tokens begin
    for key, source in sources.items():
        tokens = tokenizer.encode(source.read(0, source.size), source.where)
        lengths = tokenizer.lengths[tokens]
        begins[key] = sum(map(len, parts)), lengths.cumsum() - lengths - tokenizer.added
        parts.append(tokens.astype(_dtype(tokenizer)))
    stream = Stream(np.concatenate(parts), _dtype(tokenizer), 0, sum(map(len, parts)))

    def windows(start: int, stop: int) -> TextSplit:
        part = stream.cut(start, stop)
        t = max(1, min(like.event_shape[0], len(part)))
        return TextSplit(Windows(part, t, t))

    def cut(key: str, *ends: int) -> TextSplit:
        first, at = begins[key]
        return windows(
            *(first + (len(at) if end == sources[key].size else int(np.searchsorted(at, end))) for end in ends)
        )

    train, validation, test = (cut(*cuts[s]) for s in SPLITS)
    return Data(name, like, train, validation, test, full=windows(0, len(stream)), text=settings)


Cuts = dict[str, tuple[str, int, int]]  # of each split: the source it is cut from, and its first and last byte


def _cuts(sources: Mapping[str, _Source], settings: TextSettings) -> Cuts:
    """Return the limits of each split; a split without a source of its own is cut from the training text."""
    fractions = dict(zip(SPLITS, settings.fractions(), strict=True))
    train = sources["train"]
    missing = [split for split in ("validation", "test") if split not in sources]
    end = round(1 - sum(fractions[split] for split in missing), 12)
    edges = [0, train.character(int(train.size * end))]
    for split in missing:
        end = round(end + fractions[split], 12)
        edges.append(max(edges[-1], train.character(int(train.size * end))))
    cuts = {"train": ("train", 0, edges[1])}
    cuts |= {split: ("train", edges[i], edges[i + 1]) for i, split in enumerate(missing, 1)}
    cuts |= {split: (split, 0, sources[split].size) for split in sources if split != "train"}
    return cuts


def _required(split: str, cuts: Cuts) -> bool:
    """Return whether a split must have at least one window."""
    _, start, stop = cuts[split]
    return split == "train" or stop > start


def _tokenizer_of(spec: DataSpec, where: str) -> Tokenizer:
    if spec.tokenizer is None:
        raise ValueError(f"{where}: the model accepts {spec.describe()} without a tokenizer: it cannot read text")
    return spec.tokenizer


def _tokens(
    sources: Mapping[str, _Source], cuts: Cuts, settings: TextSettings, required: Tokenizer | None, cache: Path
) -> tuple[Tokenizer, Stream, dict[str, int]]:
    """Return the tokenizer, the tokens of all splits in one stream, and their numbers; from the cache if possible."""
    paths = [part for source in sources.values() for part in source.parts if isinstance(part, Path)]
    kind = required.kind if required else settings.tokenizer
    if kind == "bytes" and len(paths) == 1 and len(sources) == 1:  # the file is its own tokens
        counts = {split: stop - start for split, (_, start, stop) in cuts.items()}
        return Bytes(), Stream(paths[0], "uint8", 0, sources["train"].size), counts
    if not paths:
        tokenizer = required or _train(sources, cuts, settings)
        parts = {s: list(_encode(sources, cuts, s, tokenizer)) for s in SPLITS}
        every = [block for s in SPLITS for block in parts[s]]
        tokens = np.concatenate(every) if every else np.empty(0, _dtype(tokenizer))
        return (
            tokenizer,
            Stream(tokens, _dtype(tokenizer), 0, len(tokens)),
            {s: sum(map(len, parts[s])) for s in SPLITS},
        )
    return _cached(sources, cuts, settings, required, paths, cache)


def _cached(
    sources: Mapping[str, _Source],
    cuts: Cuts,
    settings: TextSettings,
    required: Tokenizer | None,
    paths: Sequence[Path],
    cache: Path,
) -> tuple[Tokenizer, Stream, dict[str, int]]:
    """Read or write KEY.bin, the tokens, and KEY.json (written last), the tokenizer and the counts."""
    which = _digest([str(path.resolve()) for path in paths])
    state = _digest([(path.stat().st_size, path.stat().st_mtime_ns) for path in paths])
    plain_cuts = [[split, *cuts[split]] for split in SPLITS]
    request = [settings.tokenizer, settings.vocabulary if settings.tokenizer == "bpe" else None]
    for file in sorted(cache.glob(f"{which}-{state}-*.json")):
        with suppress(ValueError, KeyError, OSError):
            found = json.loads(file.read_text(encoding="utf-8"))
            tokenizer, counts = tokenizers.from_dict(found["tokenizer"]), found["counts"]
            alike = tokenizer == required if required else found["request"] == request
            if alike and found["cuts"] == plain_cuts:
                return tokenizer, Stream(file.with_suffix(".bin"), _dtype(tokenizer), 0, sum(counts.values())), counts
    tokenizer = required or _train(sources, cuts, settings)
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{which}-{state}-{_digest([tokenizer.to_dict(), plain_cuts])}.bin"
    partial = file.with_suffix(f".{os.getpid()}.partial")
    counts = dict.fromkeys(SPLITS, 0)
    try:
        with naming(file), partial.open("wb") as out:
            for split in SPLITS:
                for block in _encode(sources, cuts, split, tokenizer):
                    out.write(block.tobytes())
                    counts[split] += len(block)
        partial.replace(file)
        about = {
            "request": None if required else request,
            "cuts": plain_cuts,
            "counts": counts,
            "tokenizer": tokenizer.to_dict(),
        }
        with naming(file):
            partial.write_text(json.dumps(about), encoding="utf-8")
        partial.replace(file.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)
    return tokenizer, Stream(file, _dtype(tokenizer), 0, sum(counts.values())), counts


def _train(sources: Mapping[str, _Source], cuts: Cuts, settings: TextSettings) -> Tokenizer:
    """Train a tokenizer: characters of all splits, so that each has a probability; pairs of the training text only."""
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
    return "uint8" if tokenizer.size <= 2**8 else "uint16" if tokenizer.size <= 2**16 else "uint32"


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
