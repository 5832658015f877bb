"""Strings of data in a terminal: control characters are written as escapes, so that they cannot command it."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Cc: control, ESC and newline among them; Zl, Zp: separators of lines; Cs: halves of a character
CONTROL = {"Cc", "Zl", "Zp", "Cs"}
BIDI = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # reorder text


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with escapes in place of control characters and marks that reorder text.

    Characters in `keep` stay.

    >>> print(printable("cat\x1b]0;owned\x07"))
    cat\x1b]0;owned\x07
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in keep or not (c in BIDI or unicodedata.category(c) in CONTROL) else _escape(c) for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
