"""Loaders under random damage: data, or one line that names the file, and never another error.

`make test-all` searches for ten minutes; `make test` repeats a few cases that do not change.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.commands import run
from helpers.fuzz import EDITS, damaged, long_search, searching
from helpers.hostile_arrays import archive, image_bytes, saved
from helpers.hostile_tables import table_bytes
from loglik.data import TextSettings, load

TEXT = ("Hello, wörld: 1,2;3\n" * 60).encode()
FEW = {
    "csv": ("t.csv", table_bytes("csv")),
    "npy": ("x.npy", saved(np.arange(60.0).reshape(30, 2))),
    "npz": ("x.npz", archive({"x.npy": saved(np.ones((30, 2))), "y.npy": saved(np.arange(30) % 3)})),
    "png": ("x.png", image_bytes()),
    "jpg": ("x.jpg", image_bytes(kind="jpeg")),
    "gif": ("x.gif", image_bytes(kind="gif")),
    "tif": ("x.tif", image_bytes(kind="tiff")),
    "txt": ("t.txt", TEXT),
}
APART = {
    "parquet": ("t.parquet", table_bytes("parquet")),
    "arrow": ("t.arrow", table_bytes("ipc", compression="zstd")),
    "stream": ("t.arrow", table_bytes("ipc_stream", compression="lz4")),
    "json": ("t.json", table_bytes("json")),
    "jsonl": ("t.jsonl", table_bytes("ndjson")),
}


def read(path: Path) -> None:
    """Read a file, or the folder of an image, which must be data or a ValueError of one line that names it."""
    source = path.parent if path.suffix in (".png", ".jpg", ".gif", ".tif") else path
    text = TextSettings(tokenizer="characters", window=4) if path.suffix == ".txt" else None
    try:
        load(source, text=text, cache=path.parent / ".cache")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500 and str(path.parent) in str(error), error


@pytest.mark.parametrize("kind", FEW)
@searching(25)
@given(edits=EDITS)
def test_damaged_files_are_data_or_one_line(kind, edits, tmp_path) -> None:
    name, content = FEW[kind]
    (tmp_path / name).write_bytes(damaged(content, edits))
    read(tmp_path / name)


@pytest.mark.parametrize("kind", APART)
@searching(2)
@given(edits=EDITS)
def test_damaged_tables_are_data_or_one_line(kind, edits, tmp_path) -> None:
    name, content = APART[kind]
    (tmp_path / name).write_bytes(damaged(content, edits))
    read(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", {**FEW, **APART})
def test_a_long_search(kind, tmp_path) -> None:
    """About ten minutes in all; LOGLIK_FUZZ multiplies it."""
    name, content = {**FEW, **APART}[kind]

    @long_search(5000 if kind in FEW else 300)
    @given(edits=EDITS)
    def search(edits):
        (tmp_path / name).write_bytes(damaged(content, edits))
        read(tmp_path / name)

    search()


@searching(150)
@given(text=st.text(st.sampled_from(list("ab12.,;\t|\"'\r\n ÿ\0-eNA\x1b")), max_size=200))
def test_any_csv_is_data_or_one_line(text, tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    read(path)


WORDS = st.one_of(
    st.sampled_from(
        ["fit", "evaluate", "sample", "--set", "--seed", "--out", "-n", "--model", "flow", "width=8", "--help"]
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(str),
)


@searching(40)
@given(
    command=st.sampled_from(["fit", "compare", "evaluate", "sample", "encode", "fill", "inspect", "verify", "list"]),
    words=st.lists(WORDS, max_size=6),
)
def test_any_command_line_ends_in_one_line(command, words, own_folder) -> None:
    """Nothing exists in the folder, so a command is refused or shows its help."""
    if any(word.startswith(("digits", "hf:", "wine", "diabetes", "breast", "fashion", "/", "~")) for word in words):
        return
    done = run(command, *words)
    assert done.status in (0, 2)
    assert done.err.count("\n") == (done.status == 2 and not done.out), done  # `loglik list` alone shows its help
