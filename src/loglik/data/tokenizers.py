r"""Tokenizers: text as integers 0 ... K-1 and back, each token a string of bytes.

Three of them: `Bytes` (K = 256, reads any file), `Characters` (one token for each character of the user's text) and
`BytePairs` (byte-pair encoding, Sennrich et al. 2016, over bytes). What a text costs in nats depends on its tokens;
its bits per byte, $-\log_2 p(\text{text}) / \text{bytes}$, do not, because every token knows its bytes.

Where a text has several encodings, the probability of the one that `encode` returns is at most p(text).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, Shaped

from loglik.data.limits import quote

__all__ = ["KINDS", "BytePairs", "Bytes", "Characters", "Tokenizer", "from_dict", "train"]

KINDS = ("bytes", "characters", "bpe")
MAX_TOKENS = 65_536
BPE_TRAINING_BYTES = 2**26

# words with the blank before them, numbers, signs, single newlines, other blanks: a newline is always a token of its
# own, so that lines can be encoded one by one
PIECES = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"


class Tokenizer(ABC):
    """A tokenizer: `decode(encode(text))` is the text.

    Attributes:
        kind: its name in a configuration.
        elsewhere: it comes with a model of another library. Its tokens may join any characters, so a text is encoded as
            a whole, and the model scores texts of any length.
        added: the number of bytes that the tokens of a text have before it, such as a space; not of the text.
    """

    kind: ClassVar[str]
    elsewhere: ClassVar[bool] = False
    added: ClassVar[int] = 0

    @property
    @abstractmethod
    def table(self) -> tuple[bytes, ...]:
        """The bytes of each token 0 ... K-1."""

    @abstractmethod
    def encode(self, text: bytes, where: Callable[[int], str] = lambda at: f"byte {at}") -> Int64[np.ndarray, " N"]:
        """Return the tokens of a text in UTF-8.

        `where` describes the position of a byte, for errors. Raises ValueError for characters without a token.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for YAML and JSON; `from_dict` is the inverse."""

    @property
    def size(self) -> int:
        """K, the number of tokens."""
        return len(self.table)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " K"]:
        """The number of bytes of each token."""
        return np.array([len(token) for token in self.table], dtype=np.int64)

    def decode(self, tokens: Iterable[int] | Shaped[np.ndarray, " N"]) -> bytes:
        """Return the bytes of the tokens, concatenated."""
        table = self.table
        return b"".join(table[int(token)] for token in tokens)


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """Each byte is a token, so any file can be read.

    >>> Bytes().encode("né".encode()).tolist()
    [110, 195, 169]
    """

    kind: ClassVar[str] = "bytes"

    @cached_property
    def table(self) -> tuple[bytes, ...]:  # type: ignore[override]
        return tuple(bytes([value]) for value in range(256))

    def encode(self, text: bytes, where: Callable[[int], str] = lambda at: f"byte {at}") -> Int64[np.ndarray, " N"]:
        return np.frombuffer(text, dtype=np.uint8).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Each character of an alphabet is a token, numbered in the order of code points.

    >>> Characters("abc").encode(b"cab").tolist()
    [2, 0, 1]
    """

    kind: ClassVar[str] = "characters"
    characters: str

    def __post_init__(self) -> None:
        if not self.characters or list(self.characters) != sorted(set(self.characters)):
            raise ValueError("characters must be distinct, in the order of their code points, and at least one")

    @cached_property
    def table(self) -> tuple[bytes, ...]:  # type: ignore[override]
        return tuple(character.encode() for character in self.characters)

    def encode(self, text: bytes, where: Callable[[int], str] = lambda at: f"byte {at}") -> Int64[np.ndarray, " N"]:
        points, known = _code_points(_utf8(text, where, "characters")), _code_points(self.characters)
        tokens = np.searchsorted(known, points).clip(max=len(known) - 1)
        if (strange := known[tokens] != points).any():
            at = int(strange.argmax())
            character = chr(points[at])
            position = len(text.decode()[:at].encode())
            raise ValueError(
                f"{where(position)}: the character {character!r} is none of the {len(known)} that the model knows: "
                "leave it out, or train with tokenizer=bytes"
            )
        return tokens.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


@dataclass(frozen=True)
class BytePairs(Tokenizer):
    """Byte-pair encoding: tokens 0 to 255 are the bytes, and token 256 + i joins the two of `merges[i]`.

    A text is encoded by the library `tokenizers` (the extra `loglik[bpe]`), and decoded without it.
    """

    kind: ClassVar[str] = "bpe"
    merges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for i, pair in enumerate(self.merges):
            if not all(0 <= token < 256 + i for token in pair):
                raise ValueError(f"merge {i} joins {pair}: it may join tokens 0 to {255 + i}")

    @cached_property
    def table(self) -> tuple[bytes, ...]:  # type: ignore[override]
        table = list(Bytes().table)
        for first, second in self.merges:
            table.append(table[first] + table[second])
        return tuple(table)

    def encode(self, text: bytes, where: Callable[[int], str] = lambda at: f"byte {at}") -> Int64[np.ndarray, " N"]:
        words = _utf8(text, where, "bpe")
        return np.array(self._encoder.encode(words).ids, dtype=np.int64)

    @cached_property
    def _encoder(self) -> Any:
        library = _library()
        names = ["".join(map(NAMES.__getitem__, token)) for token in self.table]
        merges = [(names[first], names[second]) for first, second in self.merges]
        model = library.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges)
        return _pipeline(library, model)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "merges": " ".join(f"{first} {second}" for first, second in self.merges)}


def from_dict(plain: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that `to_dict` described."""
    kind = plain["kind"]
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        return Characters(plain["characters"])
    if kind == "bpe":
        numbers = [int(number) for number in plain["merges"].split()]
        return BytePairs(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    raise ValueError(f"unknown tokenizer {quote(kind)}: use {', '.join(KINDS)}")


def train(
    kind: str,
    pieces: Iterable[bytes],
    *,
    vocabulary: int = 1024,
    where: Callable[[int], str] = lambda at: f"byte {at}",
) -> Tokenizer:
    """Train a tokenizer on a text in pieces that end between characters.

    Args:
        kind: `bytes`, `characters` or `bpe`.
        vocabulary: K of byte-pair encoding, which counts pairs in the first 64 MiB.
        where: describes the position of a byte, for errors.

    Raises ValueError where the text is not UTF-8 and the kind needs it, or has too many characters.
    """
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        found: set[str] = set()
        start = 0
        for piece in pieces:
            found.update(_utf8(piece, lambda at, start=start: where(start + at), kind))  # type: ignore[misc]
            start += len(piece)
        if len(found) > MAX_TOKENS:
            raise ValueError(f"the text has {len(found):,} distinct characters; at most {MAX_TOKENS:,} are possible")
        if not found:
            raise ValueError("the text is empty")
        return Characters("".join(sorted(found)))
    if kind != "bpe":
        raise ValueError(f"unknown tokenizer {quote(kind)}: use {', '.join(KINDS)}")
    if not 256 < vocabulary <= MAX_TOKENS:
        raise ValueError(f"vocabulary must be 257 to {MAX_TOKENS:,}: 256 bytes and their pairs, got {vocabulary}")
    library = _library()
    encoder = _pipeline(library, library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=sorted(NAMES), special_tokens=[], min_frequency=2
    )
    encoder.train_from_iterator(_first(pieces, BPE_TRAINING_BYTES, where), trainer=trainer)
    return BytePairs(_merges(encoder))


def _first(pieces: Iterable[bytes], max_bytes: int, where: Callable[[int], str]) -> Iterator[str]:
    """Yield the beginning of a text, in strings."""
    start = 0
    for piece in pieces:
        yield _utf8(piece, lambda at, start=start: where(start + at), "bpe")  # type: ignore[misc]
        start += len(piece)
        if start >= max_bytes:
            return


def _merges(encoder: Any) -> tuple[tuple[int, int], ...]:
    """Return the pairs that the library found, as numbers; of two pairs that spell the same token, the first."""
    import json

    number = {name: value for value, name in enumerate(NAMES)}
    merges: list[tuple[int, int]] = []
    for pair in json.loads(encoder.to_str())["model"]["merges"]:
        first, second = pair if isinstance(pair, list) else pair.split(" ")
        if first + second not in number:
            number[first + second] = 256 + len(merges)
            merges.append((number[first], number[second]))
    return tuple(merges)


def _pipeline(library: Any, model: Any) -> Any:
    encoder = library.Tokenizer(model)
    encoder.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(PIECES), behavior="isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return encoder


def _library() -> Any:
    try:
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers  # noqa: F401
    except ImportError:
        raise ValueError("tokenizer=bpe needs the package tokenizers: pip install 'loglik[bpe]'") from None
    return tokenizers


def _byte_names() -> Sequence[str]:
    """Return the character that the library writes for each byte: itself if visible, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(value) if value in seen else chr(next(others)) for value in range(256)]


NAMES = _byte_names()


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _utf8(text: bytes, where: Callable[[int], str], kind: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        value = text[error.start]
        raise ValueError(
            f"{where(error.start)}: not UTF-8 text (0x{value:02x}: {error.reason}), which tokenizer={kind} needs: "
            "save it as UTF-8, or use tokenizer=bytes"
        ) from None
