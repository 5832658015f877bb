"""A tokenizer of transformers as a `Tokenizer`: its tokens, and the bytes that each token stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from loglik.data.limits import quote
from loglik.data.tokenizers import NAMES, Tokenizer

__all__ = ["PretrainedTokenizer"]

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of a character that has no token, in SentencePiece's spelling


class PretrainedTokenizer(Tokenizer):
    """A tokenizer of transformers over the K tokens of a model; tokens without a text have no bytes.

    Args:
        tokenizer: from the model's library.
        size: K, the number of logits of the model.
        lossy: encode texts that decoding does not return, as those of a tokenizer that writes lower case.

    No special tokens are added to a text.
    """

    kind: ClassVar[str] = "transformers"
    elsewhere: ClassVar[bool] = True

    def __init__(self, tokenizer: Any, size: int, *, lossy: bool = False) -> None:
        self.tokenizer, self.lossy, self._size = tokenizer, lossy, size

    @property
    def size(self) -> int:
        return self._size

    @cached_property
    def table(self) -> tuple[bytes, ...]:  # type: ignore[override]
        known = {token: name for name, token in self.tokenizer.get_vocab().items()}
        added = set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        spell = self._spell_bytes if self._of_bytes else self._spell_text
        table = []
        for token in range(self.size):
            name = known.get(token)
            if name is None:
                table.append(b"")
            else:
                table.append(name.encode() if token in added else spell(token, name))
        return tuple(table)

    @property
    def _of_bytes(self) -> bool:
        """Whether tokens are spelt in the 256 characters that stand for bytes, as those of GPT-2."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in repr(backend.decoder)

    def _spell_bytes(self, token: int, name: str) -> bytes:
        return bytes(NUMBERS[character] for character in name if character in NUMBERS)

    def _spell_text(self, token: int, name: str) -> bytes:
        """Return a token's text in the middle of a text: at its beginning some tokenizers drop a space."""
        if byte := BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return self._text([self._anchor, token]).removeprefix(self._text([self._anchor])).encode()

    @cached_property
    def _anchor(self) -> int:
        return self._ids("a")[-1]

    @cached_property
    def added(self) -> int:  # type: ignore[override]
        return max(0, sum(len(self.table[token]) for token in self._ids("a")) - 1)

    def encode(self, text: bytes, where: Callable[[int], str] = lambda at: f"byte {at}") -> Int64[np.ndarray, " N"]:
        try:
            words = text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where(error.start)}: not UTF-8 text: save it as UTF-8") from None
        ids = self._ids(words)
        if not self.lossy and (back := self._text(ids)) != words:
            same = [a == b for a, b in zip(words, back, strict=False)]
            at = same.index(False) if False in same else len(same)
            own, other = (quote(text[at : at + 20]) for text in (words, back))
            place = where(len(words[:at].encode()))
            raise ValueError(
                f"{place}: the model's tokenizer does not keep this text: {own} becomes {other}, whose probability it "
                "would be: write the text as the tokenizer does, or pass lossy=True"
            )
        return np.array(ids, dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": type(self.tokenizer).__name__, "size": self.size}


NUMBERS = {character: value for value, character in enumerate(NAMES)}
