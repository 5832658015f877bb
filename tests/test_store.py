"""Stores of decoded examples: their rows, their splits, damage, changes and several processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from loglik.data import store as module
from loglik.data.dataset import Split, into_splits
from loglik.data.limits import bytes_from
from loglik.data.spec import DataSpec
from loglik.data.store import Rows, Store, Writer, is_large, stored

VALUES = np.arange(600, dtype=np.float32).reshape(100, 2, 3)
SPEC = DataSpec(kind="array", event_shape=(2, 3))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "source"
    path.write_text("one")
    return path


def write(writer: Writer) -> None:
    for block in np.array_split(VALUES, 7):
        writer.append(x=block, y=np.arange(len(block)))
    writer.about = {"name": "ä"}


def refuse(writer: Writer) -> None:
    raise AssertionError("the store was there")


def test_a_store_is_written_once_and_read_by_rows(source):
    first = stored([source], {"label": None}, write)
    again = stored([source], {"label": None}, refuse)
    assert first.path == again.path and again.about == {"name": "ä"} and "y" in again and "z" not in again
    x, plain = again.rows(), torch.from_numpy(VALUES)
    assert x.shape == (100, 2, 3) and x.dtype == torch.float32 and len(x) == 100
    rows = torch.tensor([99, 0, 5, 5, 42])
    for part in (rows, slice(None), slice(3, 50), slice(None, None, 7), slice(90, 200), torch.tensor([], dtype=int)):
        assert torch.equal(x[part], plain[part]) and torch.equal(x.select(rows)[:][1:], plain[rows][1:])
        assert torch.equal(x.select(torch.arange(99, -1, -1))[part], plain.flip(0)[part])
    assert torch.equal(again.tensor("y"), torch.cat([torch.arange(len(b)) for b in np.array_split(VALUES, 7)]))
    with pytest.raises(IndexError):
        x[torch.tensor([100])]


def test_blocks_and_released_pages_change_no_number(source, monkeypatch):
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "BLOCK", 50)
    monkeypatch.setattr(module, "RESIDENT", 1000)
    x = stored([source], None, write).rows()
    assert all(torch.equal(x[rows], torch.from_numpy(VALUES)[rows]) for _ in range(3))
    assert x.array._touched <= 1000


def test_splits_of_a_store_are_those_of_a_tensor(source):
    y = torch.arange(100) % 3
    x = stored([source], None, write).rows()
    ours = into_splits("d", SPEC, x, y, seed=3)
    plain = into_splits("d", SPEC, torch.from_numpy(VALUES), y, seed=3)
    for name in ("train", "validation", "test", "all"):
        a, b = ours.split(name), plain.split(name)
        assert isinstance(a.x, Rows) and a.x.array is x.array and len(a) == len(b)
        assert torch.equal(a.tensor(), b.tensor()) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)
        rows = torch.arange(len(a) - 1, -1, -2)
        for one, other in (a.batch(rows), b.batch(rows)), (a.first(4), b.first(4)):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        even = a.evenly(5)
        assert torch.equal(even.x, b.evenly(5).x) and isinstance(even.x, torch.Tensor)
    meta = Split(x, y).to(torch.device("meta"), max_bytes=2400)
    assert meta.x.is_meta and Split(x, y).to(torch.device("meta"), max_bytes=2399).x is x


def test_a_changed_source_gets_a_new_store_and_its_old_one_is_deleted(source):
    old, other = stored([source], 1, write), stored([source], 2, write)
    kept = old.rows()
    assert old.path != other.path and old.path.exists()
    source.write_text("other")
    new = stored([source], 1, write)
    assert new.path != old.path and not old.path.exists() and not other.path.exists()
    assert torch.equal(kept[:], torch.from_numpy(VALUES))  # mapped still

    def change(writer):
        write(writer)
        source.write_text("changed again")

    source.write_text("before")
    with pytest.raises(ValueError, match="changed while it was read"):
        stored([source], 1, change)
    assert [path.name for path in new.path.parent.iterdir() if path.is_dir()] == [new.path.name]


@pytest.mark.parametrize("name", ["header.json", "x.bin", "y.bin"])
@pytest.mark.parametrize("harm", ["delete", "cut", "grow", "flip"])
def test_a_damaged_store_is_written_again(source, name, harm):
    file = stored([source], None, write).path / name
    content = file.read_bytes()
    if harm == "delete":
        file.unlink()
    elif harm == "flip":
        if name != "header.json":
            return
        file.write_bytes(content[:70] + bytes([content[70] ^ 1]) + content[71:])
    else:
        file.write_bytes(content[:-1] if harm == "cut" else content + b"\0")
    with pytest.raises(ValueError, match=r"damaged|no readable"):
        Store(file.parent)
    assert torch.equal(stored([source], None, write).rows()[:], torch.from_numpy(VALUES))
    assert file.read_bytes() == content


def test_a_writer_that_fails_leaves_nothing(source):
    def fail(writer):
        write(writer)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        stored([source], None, fail)
    folder = module.user_cache() / "data"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    path = stored([source], None, write).path
    killed = path.with_name(f"{path.name}.123.partial")
    killed.mkdir()
    (path / "header.json").unlink()
    stored([source], None, write)
    assert not killed.exists()


def test_two_processes_write_one_store(source, tmp_path):
    code = """
import sys, time
from pathlib import Path
import numpy as np
from loglik.data.store import stored
def write(writer):
    with open(sys.argv[2], "a") as log:
        log.write("x")
    for i in range(50):
        writer.append(x=np.full((10, 2), i, np.float32))
        time.sleep(0.005)
print(float(stored([Path(sys.argv[1])], None, write).rows()[:].sum()))
"""
    log = tmp_path / "log"
    words = [sys.executable, "-c", code, str(source), str(log)]
    children = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ}) for _ in range(2)]
    assert [child.communicate()[0].strip() for child in children] == ["24500.0", "24500.0"]
    assert log.read_text() == "x"


def test_the_limit_of_data_in_memory(monkeypatch):
    assert not is_large(2**28) and is_large(2**28 + 1)
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1KiB")
    assert is_large(1025) and not is_large(1024)
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "some")
    with pytest.raises(ValueError, match="LOGLIK_MAX_IN_MEMORY must be a number of bytes"):
        is_large(1)
    assert bytes_from("LOGLIK_NO_SUCH_VARIABLE") is None


def test_the_header_is_plain_json(source):
    lines = (stored([source], None, write).path / "header.json").read_text().splitlines()
    assert json.loads(lines[1])["arrays"]["x"] == ["float32", [100, 2, 3]]
