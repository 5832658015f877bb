"""Tokenizers: round trips, what they store, and what they refuse."""

import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loglik.data import tokenizers
from loglik.data.tokenizers import BytePairs, Bytes, Characters, from_dict, train

TEXT = ("the cat sat on the mat; the dog – a big dog – ran.\n\n  Ünïcode: naïve café 日本 🙂\n" * 20).encode()
pairs = train("bpe", [TEXT], vocabulary=300)
TRAINED = {"bytes": Bytes(), "characters": train("characters", [TEXT]), "bpe": pairs}


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_round_trip_of_the_text(kind) -> None:
    tokenizer = TRAINED[kind]
    tokens = tokenizer.encode(TEXT)
    assert tokens.dtype == np.int64 and 0 <= tokens.min() <= tokens.max() < tokenizer.size
    assert tokenizer.decode(tokens) == TEXT
    assert tokenizer.lengths[tokens].sum() == len(TEXT)
    assert tokenizer.size == len(tokenizer.table) == len(tokenizer.lengths)
    assert tokenizer.encode(b"").tolist() == [] and tokenizer.decode([]) == b""


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_described_in_plain_values(kind) -> None:
    tokenizer = TRAINED[kind]
    plain = yaml.safe_load(yaml.safe_dump(tokenizer.to_dict(), allow_unicode=True))
    again = from_dict(plain)
    assert again == tokenizer and again.to_dict() == plain
    assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_bytes_take_anything(text: bytes) -> None:
    assert Bytes().decode(Bytes().encode(text)) == text


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_byte_pairs_take_any_text(text: str) -> None:
    assert pairs.decode(pairs.encode(text.encode())) == text.encode()


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_characters_are_those_of_the_text(text: str) -> None:
    tokenizer = train("characters", [text.encode()])
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert tokenizer.decode(tokenizer.encode(text.encode())).decode() == text
    assert len(tokenizer.encode(text.encode())) == len(text)


@given(st.lists(st.text(alphabet="ab \n.1é", max_size=12), max_size=6))
@settings(max_examples=100, deadline=None)
def test_lines_are_encoded_one_by_one(lines: list[str]) -> None:
    pieces = [f"{line}\n".encode() for line in lines]
    apart = [token for piece in pieces for token in pairs.encode(piece).tolist()]
    assert pairs.encode(b"".join(pieces)).tolist() == apart


def test_byte_pairs_join_what_is_common() -> None:
    assert 256 < pairs.size <= 300
    assert b" the" in pairs.table
    assert len(pairs.encode(TEXT)) < 0.7 * len(TEXT)
    assert len(set(pairs.table)) == pairs.size  # no two tokens spell the same


def test_no_training_on_what_is_not_there() -> None:
    """Pieces beyond the limit are not read."""

    def pieces():
        yield TEXT
        raise AssertionError("read on")

    tokenizers.BPE_TRAINING_BYTES, before = len(TEXT), tokenizers.BPE_TRAINING_BYTES
    try:
        assert train("bpe", pieces(), vocabulary=300) == pairs
    finally:
        tokenizers.BPE_TRAINING_BYTES = before


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_not_utf8_says_where(kind) -> None:
    with pytest.raises(ValueError, match=rf"^byte 3: not UTF-8 text \(0xff: .*\), which tokenizer={kind} needs: save"):
        TRAINED[kind].encode(b"the\xff")
    with pytest.raises(ValueError, match=r"^byte 7: not UTF-8"):
        train(kind, [b"the ", b"cat\xff"], vocabulary=300)


def test_unknown_characters_say_where() -> None:
    with pytest.raises(ValueError, match=r"^here 5: the character 'z' is none of the 3 that the model knows"):
        Characters("abé").encode("abéaz".encode(), lambda at: f"here {at}")


def test_wrong_descriptions() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer 'words': use bytes, characters, bpe"):
        train("words", [TEXT])
    with pytest.raises(ValueError, match="unknown tokenizer 'words'"):
        from_dict({"kind": "words"})
    with pytest.raises(ValueError, match="vocabulary must be 257 to 65,536"):
        train("bpe", [TEXT], vocabulary=256)
    with pytest.raises(ValueError, match="merge 0 joins"):
        BytePairs(((0, 256),))
    with pytest.raises(ValueError, match="distinct"):
        Characters("ba")
    with pytest.raises(ValueError, match="the text is empty"):
        train("characters", [])


def test_without_the_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"tokenizer=bpe needs the package tokenizers: pip install 'loglik\[bpe\]'"):
        train("bpe", [TEXT], vocabulary=300)
    assert BytePairs(pairs.merges).decode(pairs.encode(b"the mat")) == b"the mat"  # decoding needs none
