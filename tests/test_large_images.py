"""Images from folders, tar shards and Datasets: in memory and from a store, the same pixels, labels and splits."""

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import loglik
from helpers.commands import refused, well
from loglik.data import as_data, from_arrays, image_tables, load, pixels
from loglik.data.dataset import Data
from loglik.data.picture_columns import HasPictures
from loglik.data.store import Rows

RNG = np.random.default_rng(0)
SPLITS = ("train", "validation", "test", "all")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOGLIK_CACHE", str(folder))
    monkeypatch.setattr(pixels, "BLOCK", 1000)  # a few images
    return folder


def in_store(monkeypatch) -> None:
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "100")


def encoded(array: np.ndarray, kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def images(n: int, *, colour_from: int) -> list[np.ndarray]:
    return [RNG.integers(0, 256, (6, 5, 3) if i >= colour_from else (6, 5), dtype=np.uint8) for i in range(n)]


def write_tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path, arrays: list[np.ndarray], start: int = 0, *, as_json: bool = False):
    members = {}
    for i, array in enumerate(arrays, start):
        members[f"./{i:04}.png"] = encoded(array)
        label = "dog" if i % 3 else "cat"
        members |= {f"./{i:04}.json": json.dumps({"id": i, "kind": label}).encode()} if as_json else {}
        members |= {} if as_json else {f"./{i:04}.cls": label.encode() + b"\n"}
        members[f"./{i:04}.txt"] = b"a caption"
    return write_tar(path, members)


def equal(one: Data, other: Data) -> None:
    assert one.spec == other.spec
    for split in SPLITS:
        a, b = one.split(split), other.split(split)
        assert torch.equal(a.tensor(), b.tensor())
        assert torch.equal(a.index, b.index)
        assert (a.y is None and b.y is None) or torch.equal(a.y, b.y)


@pytest.mark.parametrize("colour_from", [0, 17, 100])
def test_a_folder_in_a_store_is_as_in_memory(colour_from, tmp_path, monkeypatch, cache) -> None:
    for i, array in enumerate(images(40, colour_from=colour_from)):
        path = tmp_path / ["cat", "dog"][i // 20] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(array))
    memory = load(tmp_path)
    assert not cache.joinpath("data").exists()
    in_store(monkeypatch)
    for _ in range(2):  # written, then mapped
        data = load(tmp_path)
        assert isinstance(data.train.x, Rows)
        equal(data, memory)
    (file,) = cache.rglob("x.bin")
    assert file.stat().st_size == memory.split("all").x.numel()
    equal(load(tmp_path, like=data.spec, seed=0), memory)
    (tmp_path / "cat" / "00.png").write_bytes(encoded(images(1, colour_from=colour_from)[0]))
    assert not torch.equal(load(tmp_path).split("all").x[0:1], memory.split("all").x[0:1])


@pytest.mark.parametrize("stores", [False, True])
def test_shards_are_as_a_folder(stores, tmp_path, monkeypatch) -> None:
    arrays = images(40, colour_from=9)
    for i, array in enumerate(arrays):
        path = tmp_path / "folder" / ("dog" if i % 3 else "cat") / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(array))
    folder = load(tmp_path / "folder").split("all")
    order = torch.tensor(sorted(range(40), key=lambda i: (i % 3 > 0, i))).argsort()
    for k in range(3):
        shard(tmp_path / "shards" / f"part-{k:02}.tar", arrays[15 * k : 15 * k + 15], 15 * k)
        shard(tmp_path / "json" / f"{k}.tar", arrays[15 * k : 15 * k + 15], 15 * k, as_json=True)
    if stores:
        in_store(monkeypatch)
    patterns = ["shards", "shards/part-{00..02}.tar", "shards/*.tar"]
    found = [load(f"{tmp_path}/{pattern}") for pattern in patterns] + [load(tmp_path / "json", label="kind")]
    for data in found:
        assert isinstance(data.train.x, Rows) == stores
        assert data.spec.classes == ("cat", "dog")
        whole = data.split("all")
        assert torch.equal(whole.tensor(), folder.x[order])
        assert torch.equal(whole.y, folder.y[order])
        assert data.spec.label == ("kind" if data is found[-1] else None)
        equal(replace(data, spec=replace(data.spec, label=None)), found[0])
    assert load(tmp_path / "json").spec.classes == ()  # no label was named
    with pytest.raises(ValueError, match=r"no \.json member has 'kind': leave the label out"):
        load(tmp_path / "shards", label="kind")


@pytest.mark.parametrize("stores", [False, True])
def test_parquet_is_as_shards(stores, tmp_path, monkeypatch) -> None:
    arrays = images(40, colour_from=9)
    shards = load(shard(tmp_path / "a.tar", arrays)).split("all")
    files, labels = [encoded(array) for array in arrays], ["dog" if i % 3 else "cat" for i in range(40)]
    records = [{"bytes": file, "path": None} for file in files]
    pl.DataFrame({"x": labels, "img": records, "label": labels}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"pixels": files, "kind": [i % 3 > 0 for i in range(40)]}).write_parquet(tmp_path / "b.parquet")
    if stores:
        in_store(monkeypatch)
    data, other = load(tmp_path / "a.parquet"), load(tmp_path / "b.parquet", label="kind")
    assert isinstance(data.train.x, Rows) == isinstance(other.train.x, Rows) == stores
    assert (data.spec.classes, other.spec.classes) == (("cat", "dog"), ("false", "true"))
    for whole in (data.split("all"), other.split("all")):
        assert torch.equal(whole.tensor(), shards.tensor())
        assert torch.equal(whole.y, shards.y)
    assert load(tmp_path / "b.parquet").spec.classes == ()


def test_parquet_that_is_refused(tmp_path, monkeypatch) -> None:
    files = [encoded(array) for array in images(12, colour_from=99)]
    path = tmp_path / "a.parquet"
    pl.DataFrame({"img": files}).write_parquet(path)
    assert "no column 'y' for the label; the columns are img" in refused("fit", path, "--label", "y", "--model", "vae")
    found = HasPictures(path, ["img", "label"])
    assert str(found).endswith("column 'img' holds images, but a table of numbers and texts is needed")
    for columns, words in (
        ({"picture": [*files, None], "label": [1] * 13}, "row 13: no image in column 'img'"),
        ({"picture": [*files, files[0][:50]], "label": [1] * 13}, "row 13: not a readable image"),
        ({"picture": files, "label": [0.5] * 12}, "row 1: the label 0.5 is no string, integer or boolean"),
        ({"picture": files, "label": ["a"] * 11 + [None]}, "row 12: no label, but other images have one"),
    ):
        pieces = list(pl.DataFrame(columns).iter_slices(5))  # which a child process would hand over
        monkeypatch.setattr(image_tables, "picture_blocks", lambda path, names, pieces=pieces: iter(pieces))
        with pytest.raises(ValueError, match=words):
            image_tables.load_image_table(path, found)


def test_splits_of_shards(tmp_path) -> None:
    for split, n in {"train": 10, "val": 3, "test": 2}.items():
        shard(tmp_path / "folders" / split / "0.tar", images(n, colour_from=99))
        shard(tmp_path / "names" / f"{split}-000.tar", images(n, colour_from=99))
    for source in (tmp_path / "folders", tmp_path / "names", f"{tmp_path}/names/*.tar"):
        data = load(source)
        assert (len(data.train), len(data.validation), len(data.test)) == (10, 3, 2)


def test_a_run_on_a_store_resumes_bit_for_bit(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOGLIK_CPU", "loglik")
    source = shard(tmp_path / "a.tar", images(60, colour_from=0))
    words = ["fit", source, "--model", "vae", "--max-steps", 8]
    words += ["--set", "validate_every=4", "--set", "batch_size=8", "--device", "cpu", "--out"]
    well(*words, tmp_path / "memory")
    in_store(monkeypatch)
    well(*words, tmp_path / "store")
    well(*words, tmp_path / "again")
    for name in ("model.safetensors", "model.sha256", "metrics.csv"):
        (tmp_path / "again" / name).unlink()
    newest = max((tmp_path / "again" / "checkpoints").iterdir())
    for path in newest.parent.glob(f"{newest.stem}*"):
        path.unlink()
    resumed = well(*words, tmp_path / "again", "--resume")
    assert "training continues at step 4" in resumed
    memory, *others = (loglik.load(tmp_path / name).density.state_dict() for name in ("memory", "store", "again"))
    for other in others:
        assert all(torch.equal(memory[key], other[key]) for key in memory)
    results = [loglik.evaluate(loglik.load(tmp_path / name), split="all") for name in ("memory", "store")]
    assert results[0].nats == results[1].nats and results[0].gain == results[1].gain


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


X = RNG.integers(0, 256, (50, 3, 6, 5), dtype=np.uint8)
Y = RNG.integers(0, 3, 50)
KINDS = {
    "tensors": (TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), (X, Y)),
    "pictures": (
        Items([{"image": Image.fromarray(x.transpose(1, 2, 0)), "label": int(y)} for x, y in zip(X, Y, strict=True)]),
        (X, Y),
    ),
    "last": (Streamed([(x.transpose(1, 2, 0), str(y)) for x, y in zip(X, Y, strict=True)]), (X, Y)),
    "few": (Items(list(X % 7)), (X % 7,)),
    "real": (Items([(torch.from_numpy(x[0, 0] / 7.0),) for x in X]), (X[:, 0, 0] / 7.0,)),
    "integers": (Streamed(list(X[:, 0, 0].astype(np.int32) * 3)), (X[:, 0, 0].astype(np.int32) * 3,)),
    "small": (Streamed(list(X[:, 0, 0].astype(np.int64) % 9)), (X[:, 0, 0].astype(np.int64) % 9,)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stores", [False, True])
def test_datasets_are_as_arrays(kind, stores, monkeypatch, cache) -> None:
    dataset, arrays = KINDS[kind]
    monkeypatch.setattr(loglik.data.items, "BLOCK", 7)
    if stores:
        in_store(monkeypatch)
    data = as_data(dataset)
    assert isinstance(data.train.x, Rows) == stores
    equal(data, from_arrays(*arrays))
    equal(as_data(dataset, like=data.spec), from_arrays(*arrays, like=data.spec))
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "Items: no items"),
        ([(1, 2, 3)], r"Items\[0\] is a tuple of 3: give x, \(x,\), \(x, y\) or a dict"),
        ([{"a": 1}], r"Items\[0\] has none of the keys image, images, img, imgs, x, data; found a"),
        (["abc"], r"Items\[0\]: an x of type str: give a tensor, an array or a PIL image"),
        (
            [np.zeros(3), np.zeros(4)],
            r"Items\[1\] has the shape \(4,\) and the type float64, but Items\[0\] has \(3,\)",
        ),
        ([(np.ones(3), 1), (np.ones(3),)], "some items have a label and some have none"),
        ([np.ones(30), np.full(30, np.nan)], r"NaN or infinity"),
        ([np.ones(30, int), np.full(30, -1)], r"a negative value at index"),
    ],
)
def test_items_that_are_refused(items, words, stores, monkeypatch) -> None:
    if stores:
        in_store(monkeypatch)
    with pytest.raises(ValueError, match=words) as error:
        as_data(Items(items))
    assert "\n" not in str(error.value)


def links(path, kind: bytes):
    shard(path, images(3, colour_from=99))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return path


def hostile(folder):
    """Yield tar files and what is said of them."""
    png = encoded(images(1, colour_from=99)[0])
    two = {"1.png": png, "1.cls": b"a", "2.png": png, "2.cls": b"b"}
    yield write_tar(folder / "absolute.tar", {**two, "/etc/3.png": png}), "'/etc/3.png' leads out of the archive"
    yield write_tar(folder / "parent.tar", {**two, "a/../../3.png": png}), "leads out of the archive"
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        yield links(folder / f"link-{ord(kind)}.tar", kind), "'link.png' is a link, a device or a sparse file"
    whole = shard(folder / "cut.tar", images(4, colour_from=99)).read_bytes()
    (folder / "cut.tar").write_bytes(whole[:2100])
    yield folder / "cut.tar", "cut.tar: not a readable tar file"
    (folder / "zeros.tar").write_bytes(bytes(10_240))
    yield folder / "zeros.tar", "zeros.tar: no images"
    (folder / "empty.tar").write_bytes(b"")
    yield folder / "empty.tar", "empty.tar: not a readable tar file"
    (folder / "text.tar").write_bytes(b"this is text\n" * 1000)
    yield folder / "text.tar", "text.tar: not a readable tar file"
    info = tarfile.TarInfo("1.png")
    info.size = 2**40
    (folder / "huge.tar").write_bytes(info.tobuf() + png)
    yield folder / "huge.tar", "has 1,099,511,627,776 bytes"
    yield write_tar(folder / "many.tar", {f"{i}.txt": b"" for i in range(5000)}), "no images"
    yield write_tar(folder / "twice.tar", {"1.a.png": png, "1.b.png": png}), "1 has two images"
    yield write_tar(folder / "labels.tar", {"1.png": png, "1.cls": b"a", "1.json": b'{"cls": 2}'}), "1 has two labels"
    yield write_tar(folder / "no-image.tar", {**two, "3.cls": b"a", "4.png": png}), "3 has a label, but no image"
    yield write_tar(folder / "no-label.tar", {**two, "3.png": png}), "3: no label, but other images have one"
    yield write_tar(folder / "utf.tar", {"1.png": png, "1.cls": b"\xff\xfe"}), "1.cls: not a readable label"
    yield write_tar(folder / "json.tar", {"1.png": png, "1.json": b"["}), "1.json: not a readable label"
    yield write_tar(folder / "deep.tar", {"1.png": png, "1.json": b"[" * 10**5}), "1.json: not a readable label"
    yield write_tar(folder / "list.tar", {"1.png": png, "1.json": b"[1]"}), "1.json holds no object"
    yield write_tar(folder / "real.tar", {"1.png": png, "1.json": b'{"cls": 0.5}'}), "0.5 is no string or integer"
    yield write_tar(folder / "one.tar", {"1.png": png, "1.cls": b"a"}), "all labels are 'a'"
    yield write_tar(folder / "damaged.tar", {**two, "3.png": png[:50], "3.cls": b"a"}), "3: not a readable image"
    yield (
        write_tar(folder / "size.tar", {**two, "3.png": encoded(X[0, 0, 1:]), "3.cls": b"a"}),
        "3 images of 2 sizes, 5×5 to 5×6 pixels",
    )
    deep = encoded(np.full((6, 5), 70, np.uint16))
    yield write_tar(folder / "deep-pixels.tar", {**two, "3.png": deep, "3.cls": b"a"}), "more than 8 bits"
    bomb = io.BytesIO()
    Image.new("P", (10_000, 9_000)).save(bomb, "png", compress_level=1)
    yield write_tar(folder / "bomb.tar", {"1.png": bomb.getvalue()}), "and the limit is 256 MiB"
    yield f"{folder}/none-{{0..3}}.tar", "none-0.tar: no such file"
    yield f"{folder}/none-*.tar", "no file matches"
    yield f"{folder}/{{3..1}}.tar", "is empty or over"
    yield f"{folder}/{{0..999999}}{{0..999999}}.tar", "is empty or over"


@pytest.mark.parametrize("stores", [False, True])
def test_hostile_shards_are_one_line(stores, tmp_path, monkeypatch, cache) -> None:
    if stores:
        in_store(monkeypatch)
    for source, words in hostile(tmp_path):
        line = refused("fit", source, "--model", "independent", "--max-steps", 1, "--out", tmp_path / "run")
        assert words in line
        assert len(line) < 1000 and line[:-1].isprintable()
        assert not (tmp_path / "run").exists()
    left = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path for path in left if path.parent.name.endswith("partial")] == []
    assert os.path.exists("/etc/passwd")
