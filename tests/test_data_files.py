"""Images, text, named sets, and what `load` takes a source for."""

import builtins
import gzip
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from loglik.data import DataSpec, TextSettings, load, named

RNG = np.random.default_rng(0)


def picture(path, shape=(6, 5), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return torch.from_numpy(pixels)


def test_unlabelled_grey_images(tmp_path) -> None:
    pixels = [picture(tmp_path / f"{i:02}.png") for i in range(12)]
    data = load(tmp_path)
    assert data.spec == DataSpec(kind="image", event_shape=(1, 6, 5), levels=256)
    assert torch.equal(data.split("all").x[:, 0], torch.stack(pixels))


def test_class_folders_and_colour(tmp_path) -> None:
    for i in range(6):
        picture(tmp_path / "dog" / f"{i}.png", (6, 5, 3))
        grey = picture(tmp_path / "cat" / f"{i}.bmp")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = load(tmp_path)
    assert data.spec.event_shape == (3, 6, 5)
    assert data.spec.classes == ("cat", "dog")
    whole = data.split("all")
    assert whole.y.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(whole.x[5], grey.expand(3, 6, 5))


def test_split_folders(tmp_path) -> None:
    for name, n in {"train": 10, "val": 3, "test": 2}.items():
        for i in range(n):
            picture(tmp_path / name / "ab"[i % 2] / f"{i}.png")
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 3, 2)
    for i in range(3):
        (tmp_path / "val" / "ab"[i % 2] / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="val: no images in this folder"):
        load(tmp_path)
    (tmp_path / "valid").mkdir()
    with pytest.raises(ValueError, match="name one split twice"):
        load(tmp_path)


def test_palettes_and_transparency(tmp_path) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png")
    grey = Image.fromarray(np.full((6, 5), 7, np.uint8))
    grey.convert("P").save(tmp_path / "p.gif")
    clear = Image.new("LA", (5, 6), (0, 0))
    clear.save(tmp_path / "q.png")
    whole = load(tmp_path).split("all").x
    assert whole.shape == (12, 1, 6, 5)
    assert (whole[10] == 7).all()
    assert (whole[11] == 255).all()  # what is transparent shows white
    Image.new("P", (5, 6), 1).save(tmp_path / "r.png", transparency=b"\x00\x80")
    Image.new("RGBA", (5, 6), (255, 0, 0, 255)).save(tmp_path / "s.png")
    whole = load(tmp_path).split("all").x
    assert whole.shape == (14, 3, 6, 5)
    assert whole[13, :, 0, 0].tolist() == [255, 0, 0]


def test_image_errors(tmp_path) -> None:
    with pytest.raises(ValueError, match="no images and no text files in this folder"):
        load(tmp_path)
    for i in range(10):
        picture(tmp_path / "a" / f"{i}.png")
    with pytest.raises(ValueError, match=r"'a' is the only class; for unlabelled images give .*a itself"):
        load(tmp_path)
    picture(tmp_path / "b" / "0.png")
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies in no class subfolder, but others do"):
        load(tmp_path)
    picture(tmp_path / "a" / "y.png", (8, 9))
    picture(tmp_path / "a" / "z.png", (8, 9))
    with pytest.raises(ValueError, match=r"12 images of 2 sizes, 5×6 to 9×8 pixels, .* at most 10 of one .*resize=64"):
        load(tmp_path / "a")
    (tmp_path / "a" / "x.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"x\.png: not a readable image") as error:
        load(tmp_path / "a")
    assert "\n" not in str(error.value)
    Image.fromarray(np.full((6, 5), 70, np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: pixels of mode I;16, more than 8 bits: set bits=8"):
        load(tmp_path / "a")
    with pytest.raises(ValueError, match="one image is not a data set: give the folder"):
        load(tmp_path / "stray.png")


def test_images_like(tmp_path) -> None:
    picture(tmp_path / "dog" / "0.png")
    grey = DataSpec(kind="image", event_shape=(1, 6, 5), levels=256, classes=("cat", "dog"))
    colour = DataSpec(kind="image", event_shape=(3, 6, 5), levels=256)
    assert load(tmp_path, like=grey).split("all").y.tolist() == [1]
    assert load(tmp_path, like=colour).split("all").x.shape == (1, 3, 6, 5)
    assert load(tmp_path, like=colour).train.y is None
    for spec, words in [
        (DataSpec(kind="image", event_shape=(1, 6, 5), levels=17), "is above 16, the highest level"),
        (
            DataSpec(kind="text", event_shape=(8,), levels=256),
            "these are images, but the model accepts text windows 8 tokens",
        ),
        (
            DataSpec(kind="image", event_shape=(1, 6, 5), levels=256, classes=("cat", "fox")),
            "none of the model's: cat",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            load(tmp_path, like=spec)
    picture(tmp_path / "dog" / "0.png", (6, 5, 3))
    with pytest.raises(ValueError, match="a colour image; the model accepts grey ones"):
        load(tmp_path, like=grey)


TEXT = bytes(range(32, 127)) * 11  # 1,045 bytes


def test_text_folders(tmp_path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.md").write_bytes(TEXT[500:])
    (tmp_path / "a.txt").write_bytes(TEXT[:500])
    (tmp_path / "z.bin").write_bytes(b"\0")
    whole = load(tmp_path, text=TextSettings(window=10), cache=tmp_path / ".cache").split("all")
    assert bytes(whole.tensor().flatten().tolist()) == TEXT[:1040]


def test_text_errors(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="the text is empty"):
        load(path)
    path.write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="without a tokenizer: it cannot read text"):
        load(path, like=DataSpec(kind="text", event_shape=(10,), levels=100))
    with pytest.raises(ValueError, match="this is text, but the model accepts arrays 3"):
        load(path, like=DataSpec(kind="array", event_shape=(3,)))
    path.write_bytes(b"\0" * 50)
    with pytest.raises(ValueError, match="tokenizer=bytes reads any file as text"):
        load(path)
    assert len(load(path, text=TextSettings(window=5)).test.x.stream) == 5


def test_digits() -> None:
    data = load("digits")
    assert data.spec == DataSpec(kind="image", event_shape=(1, 8, 8), levels=17, classes=tuple("0123456789"))
    assert data.train.x.dtype == torch.uint8
    assert (len(data.train), len(data.validation), len(data.test)) == (1439, 179, 179)
    assert not torch.equal(load("digits", seed=1).test.index, data.test.index)


def idx(path, array) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_fashion_mnist_from_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(named, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("LOGLIK_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"dataset-fashion-mnist, or set LOGLIK_DATA .*, or use hf:fashion_mnist"):
        load("fashion-mnist")
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    test = RNG.integers(0, 256, size=(5, 28, 28), dtype=np.uint8)
    idx(folder / "train-images-idx3-ubyte.gz", RNG.integers(0, 256, size=(30, 28, 28), dtype=np.uint8))
    idx(folder / "train-labels-idx1-ubyte.gz", np.arange(30, dtype=np.uint8) % 10)
    idx(folder / "t10k-images-idx3-ubyte.gz", test)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        load("fashion-mnist")
    idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    data = load("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 5)
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(test))
    assert data.spec.classes[9] == "Ankle boot"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable IDX file"):
        load("fashion-mnist")


class Part:
    """Stands for a streamed split of a Hugging Face data set."""

    def __init__(self, columns, names=None):
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.column_names = list(columns)
        self.features = {c: types.SimpleNamespace(names=names if c == "label" else None) for c in columns}
        self.info = types.SimpleNamespace(features=self.features, splits=None, version=None, download_size=None)

    def __iter__(self):
        return iter(self.rows)

    def with_format(self, kind):
        assert kind is None
        return self

    def cast_column(self, column, feature):
        assert (column, feature) == ("img", "encoded")
        return self

    def iter(self, size):
        for start in range(0, len(self.rows), size):
            part = self.rows[start : start + size]
            yield {name: [row[name] for row in part] for name in part[0]}


def test_hugging_face(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path))
    pixels = [picture(tmp_path / f"{i}.png", (4, 4)) for i in range(20)]
    pictures = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(20)]
    pictures[3] = {"bytes": None, "path": str(tmp_path / "3.png")}
    labels = [0, 1] * 10
    found = {
        "mnist": {
            "train": Part({"img": pictures, "label": labels}, ["cat", "dog"]),
            "test": Part({"img": pictures[:4], "label": labels[:4]}, ["cat", "dog"]),
        },
        "iris": {"train": Part({"a": [0.5] * 20, "label": labels}, ["cat", "dog"])},
        "poems": {"train": Part({"text": ["roses are red"] * 20}), "dev": Part({"text": ["violets"] * 3})},
        "odd": {"dev": Part({"a": [1]})},
    }

    def load_dataset(name, configuration, streaming):
        assert streaming
        if name not in found:
            raise FileNotFoundError(f"no {name} {configuration}\nat all")
        return found[name]

    def image(decode):
        return "decoded" if decode else "encoded"

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, Image=image))
    images = load("hf:mnist")
    assert images.spec.event_shape == (1, 4, 4)
    assert (images.spec.classes, images.spec.levels) == (("cat", "dog"), 256)
    assert images.test.y.tolist() == [0, 1, 0, 1]
    assert torch.equal(images.split("all").tensor()[:20, 0], torch.stack(pixels))
    table = load("hf:iris")
    assert table.spec.columns[0].name == "a"
    assert table.split("all").y.tolist() == labels
    text = load("hf:poems", text=TextSettings(window=8))
    assert bytes(text.validation.tensor()[0].tolist()) == b"violets\n"
    with pytest.raises(ValueError, match="hf:odd: no split named train; found dev"):
        load("hf:odd")
    with pytest.raises(ValueError, match=r"^hf:none:big: no none big$"):
        load("hf:none:big")


def test_hugging_face_missing(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'loglik\[hub\]'"):
        load("hf:mnist")


def test_sources_that_are_none(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder, nor a known name: the names are digits, "):
        load(tmp_path / "none")
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match=r"a\.bin: binary, and of no known type"):
        load(tmp_path / "a.bin")
    for source in ("digits", tmp_path):
        with pytest.raises(ValueError, match="is not a table, so it has no column 'y' for the label"):
            load(source, label="y")
