"""How text is read: its tokenizer, its window and its splits."""

from __future__ import annotations

from dataclasses import dataclass

from loglik.data.limits import quote
from loglik.data.read_settings import ReadSettings
from loglik.data.tokenizers import KINDS

__all__ = ["TextSettings"]


@dataclass(frozen=True, kw_only=True)
class TextSettings(ReadSettings):
    """How text is read.

    Attributes:
        tokenizer: `bytes`, `characters` or `bpe` (byte-pair encoding, trained on the training split).
        vocabulary: the number of tokens of `bpe`.
        window: T, in tokens; if None, 128, or for a table's text column the longest text, at most 256.
        split: percentages for training, validation and test, by position.
    """

    tokenizer: str = "bytes"
    vocabulary: int = 1024
    window: int | None = None
    split: str = "80/10/10"

    def __post_init__(self) -> None:
        if self.tokenizer not in KINDS:
            raise ValueError(f"unknown tokenizer {quote(self.tokenizer)}: use {', '.join(KINDS)}")
        if type(self.vocabulary) is not int:
            raise ValueError(f"vocabulary must be an integer, got {quote(self.vocabulary)}")
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise ValueError(f"window must be at least 1 token, got {quote(self.window)}")
        self.fractions()

    def fractions(self) -> tuple[float, float, float]:
        """Return the fractions of the text for training, validation and test.

        >>> TextSettings(split="90/10/0").fractions()
        (0.9, 0.1, 0.0)
        """
        try:
            train, validation, test = (float(part) / 100 for part in str(self.split).split("/"))
        except ValueError:
            train = validation = test = -1.0
        if not (min(validation, test) >= 0 and train > 0 and abs(train + validation + test - 1) <= 1e-9):  # NaN fails
            got = quote(self.split)
            raise ValueError(f"split must be three percentages that add up to 100, as 80/10/10, got {got}")
        return train, validation, test
