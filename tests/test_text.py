"""Text as a stream of tokens: splits by position, the cache, windows, and what is refused."""

import os

import numpy as np
import pytest
import torch

from loglik.data import DataSpec, TextSettings, load
from loglik.data import text as text_module
from loglik.data.dataset import Split, TextSplit
from loglik.data.windows import Stream, Windows

TEXT = "".join(f"line {i}: naïve café, {i * i}\n" for i in range(400))


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "a.txt"


def settings_(tokenizer: str, **changes) -> TextSettings:
    return TextSettings(tokenizer=tokenizer, **{"window": 16, "vocabulary": 300, **changes})


def text_of(split, data) -> bytes:
    return data.spec.tokenizer.decode(split.x.stream.tokens())


KINDS = ["bytes", "characters", "bpe"]


@pytest.mark.parametrize("split", ["80/10/10", "90/10/0", "50/25/25"])
@pytest.mark.parametrize("kind", KINDS)
def test_splits_by_position_never_overlap(path, kind, split) -> None:
    data = load(path, text=settings_(kind, split=split))
    parts = [text_of(getattr(data, name), data) for name in ("train", "validation", "test")]
    assert b"".join(parts) == TEXT.encode() == text_of(data.split("all"), data)
    for part, share in zip(parts, data.text.fractions(), strict=True):
        part.decode()  # no character is cut
        assert abs(len(part) - share * len(TEXT.encode())) <= 4
    streams = [getattr(data, name).x.stream for name in ("train", "validation", "test")]
    ends = [(s.start, s.start + s.count) for s in streams]
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]


def test_every_tokenizer_has_the_same_splits(path) -> None:
    found = [load(path, text=settings_(kind)) for kind in KINDS]
    assert len({text_of(data.test, data) for data in found}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_windows(path, kind) -> None:
    data = load(path, text=settings_(kind))
    tokens = data.train.x.stream.tokens()
    assert data.spec.event_shape == (16,) and data.spec.levels == data.spec.tokenizer.size
    assert len(data.train) == len(tokens) - 15
    picked = data.train.x[torch.tensor([7, 0, 3])]
    assert picked.dtype == (torch.uint8 if data.spec.levels <= 256 else torch.int64)
    assert picked.tolist() == [tokens[i : i + 16].tolist() for i in (7, 0, 3)]
    assert torch.equal(data.train.x[2:9:3], data.train.x[torch.tensor([2, 5, 8])])
    side = data.validation.tensor()
    assert side.shape == (len(data.validation.x.stream) // 16, 16)
    assert side.flatten().tolist() == data.validation.x.stream.tokens()[: side.numel()].tolist()
    with pytest.raises(IndexError):
        data.train.x[torch.tensor([len(data.train)])]


def test_one_file_of_bytes_is_its_own_tokens(path, tmp_path) -> None:
    data = load(path, text=settings_("bytes"))
    assert data.train.x.stream.source == path and not (tmp_path / "cache").exists()
    assert data.spec == DataSpec(kind="text", event_shape=(16,), levels=256)


def test_blocks_of_any_size_give_the_same_tokens(path, tmp_path, monkeypatch) -> None:
    kinds = {kind: load(path, text=settings_(kind)).split("all").x.stream.tokens().tolist() for kind in KINDS}
    monkeypatch.setattr(text_module, "BLOCK", 61)
    for kind in KINDS:
        data = load(path, text=settings_(kind), cache=tmp_path / "other")
        assert data.split("all").x.stream.tokens().tolist() == kinds[kind]
    path.write_text(TEXT.replace("\n", "").replace(" ", ""), encoding="utf-8")  # nowhere to cut but between characters
    data = load(path, text=settings_("characters"), cache=tmp_path / "other")
    assert text_of(data.split("all"), data).decode() == path.read_text(encoding="utf-8")


def test_the_cache_is_used_and_never_stale(path, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "tokens"
    first = load(path, text=settings_("characters"), cache=cache)
    assert {file.suffix for file in cache.iterdir()} == {".bin", ".json"} and len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(text_module, "_encode", lambda *given: pytest.fail("tokenised again"))
        again = load(path, text=settings_("characters", window=20), cache=cache)
        as_model = load(path, like=first.spec, cache=cache)
    assert again.spec.tokenizer == first.spec.tokenizer == as_model.spec.tokenizer
    assert np.array_equal(again.train.x.stream.tokens(), first.train.x.stream.tokens())
    load(path, text=settings_("bpe"), cache=cache)
    load(path, text=settings_("bpe", vocabulary=280), cache=cache)
    assert len(list(cache.iterdir())) == 6  # one pair of files for each way to read
    changed = TEXT.replace("café", "CAFÉ")  # the same size, another time
    path.write_text(changed, encoding="utf-8")
    os.utime(path, ns=(1, 1))
    data = load(path, text=settings_("characters"), cache=cache)
    assert text_of(data.split("all"), data).decode() == changed
    assert len(list(cache.iterdir())) == 8  # a training on the old text can go on


def test_a_crash_while_tokenising_leaves_no_cache(path, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr(text_module, "_encode", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load(path, text=settings_("characters"), cache=cache)
    assert list(cache.iterdir()) == []


def test_folders(tmp_path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "s" / split).mkdir(parents=True)
        (tmp_path / "s" / split / "a.txt").write_text(split * 20)
    (tmp_path / "s" / "train" / "b.txt").write_text("end" * 20)
    for kind in KINDS:
        data = load(tmp_path / "s", text=settings_(kind, window=2), cache=tmp_path / "cache")
        assert text_of(data.train, data) == b"train" * 20 + b"end" * 20
        assert (text_of(data.validation, data), text_of(data.test, data)) == (b"val" * 20, b"test" * 20)


def test_text_from_memory(tmp_path) -> None:
    data = text_module.load_text({"train": [TEXT.encode()]}, name="t", where="t", settings=settings_("bpe"))
    assert text_of(data.split("all"), data) == TEXT.encode()
    assert isinstance(data.train.x.stream.source, np.ndarray)


def test_a_spec_with_a_tokenizer_comes_back(path) -> None:
    for kind in KINDS:
        spec = load(path, text=settings_(kind)).spec
        assert DataSpec.from_dict(spec.to_dict()) == spec
    assert load(path, text=settings_("characters")).spec.describe().endswith("tokens (characters)")


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_not_utf8_says_file_line_and_byte(tmp_path, kind) -> None:
    (tmp_path / "b.txt").write_bytes(b"good line\n" * 30 + b"bad \xff line\n" + b"good\n" * 30)
    words = rf"b\.txt: line 31, byte 304: not UTF-8 text .* tokenizer={kind} needs: save it as UTF-8, or use"
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "b.txt", text=settings_(kind, split="90/10/0"), cache=tmp_path / "cache")
    data = load(tmp_path / "b.txt", text=settings_("bytes"))
    assert text_of(data.split("all"), data) == (tmp_path / "b.txt").read_bytes()


def test_another_text_with_an_unknown_character(path, tmp_path) -> None:
    spec = load(path, text=settings_("characters")).spec
    (tmp_path / "c.txt").write_text("line 1\nline 2 @ here and more of it\n" * 5)
    with pytest.raises(ValueError, match=r"c\.txt: line 2, byte 14: the character '@' is none of"):
        load(tmp_path / "c.txt", like=spec)


def test_too_short(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 25)
    words = r"25 bytes are too short for a window of 10 in each split \(20 for train, 2 for validation, 3 for test\)"
    with pytest.raises(ValueError, match=words):
        load(path, text=TextSettings(window=10))
    assert len(load(path, text=TextSettings(window=10, split="50/50/0")).validation) == 1
    spec = DataSpec(kind="text", event_shape=(10,), levels=256)
    assert load(path, like=spec).split("all").x.shape == (2, 10)
    path.write_text("x" * 5)
    with pytest.raises(ValueError, match="5 bytes are too short for a window of 10"):
        load(path, like=spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "words"}, "unknown tokenizer 'words': use bytes, characters, bpe"),
        ({"window": 0}, "window must be at least 1 token, got 0"),
        ({"split": "90/20/0"}, "split must be three percentages that add up to 100, as 80/10/10, got '90/20/0'"),
        ({"split": "most"}, "split must be three percentages"),
        ({"split": "0/50/50"}, "split must be three percentages"),
    ],
)
def test_wrong_settings(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        TextSettings(**changes)


def test_settings_of_text_are_for_text(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 2)))
    with pytest.raises(ValueError, match="tokenizer, vocabulary, window, split are settings of text"):
        load(tmp_path / "x.npy", text=TextSettings(window=4))


def test_many_windows_are_read_in_turns(path, monkeypatch) -> None:
    data = load(path, text=settings_("characters"))
    rows = torch.randint(len(data.train), (9,))
    whole = data.train.x[rows]
    monkeypatch.setattr("loglik.data.windows.MAPPED_WINDOWS", 2)
    assert torch.equal(data.train.x[rows], whole) and data.train.x[rows[:0]].shape == (0, 16)


def test_streams() -> None:
    stream = Stream(np.arange(10, dtype=np.uint8), "uint8", 2, 6)
    assert stream.tokens().tolist() == [2, 3, 4, 5, 6, 7]
    assert stream.cut(1, 99).tokens().tolist() == [3, 4, 5, 6, 7] and len(stream.cut(4, 2)) == 0
    assert [block.tolist() for block in stream.blocks(4)] == [[2, 3, 4, 5], [6, 7]]
    assert Windows(stream, 7, 1).shape == (0, 7) and Windows(stream, 4, 4)[:].tolist() == [[2, 3, 4, 5]]


def test_a_split_of_a_text_counts_tokens_and_is_cut_in_tokens():
    stream = Stream(np.arange(20, dtype=np.uint8), "uint8", 0, 20)
    split, plain = TextSplit(Windows(stream, 4, 2)), Split(torch.arange(12).view(6, 2), torch.arange(6))
    assert (split.unit, split.size, len(split), split.units_per_example) == ("token", 20, 9, 4)
    assert (plain.unit, plain.size, len(plain), plain.units_per_example) == ("example", 6, 6, 1)
    assert split.stream is stream and plain.stream is None
    assert split.with_replacement and not plain.with_replacement
    x, y = split.batch(torch.tensor([8, 0]))
    assert x.tolist() == [[16, 17, 18, 19], [0, 1, 2, 3]] and y is None
    x, y = plain.batch(torch.tensor([5, 0]))
    assert x.tolist() == [[10, 11], [0, 1]] and y.tolist() == [5, 0]
    cut = split.limit_tokens(9)
    assert cut.size == 9 and cut.tensor().tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert split.limit_tokens(20) is split and plain.limit_tokens(3) is plain
    assert split.evenly(3).x.tolist() == split.tensor()[::3].tolist()
    assert plain.evenly(4).y.tolist() == [0, 2, 4]
