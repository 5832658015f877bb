"""Images of any size, mode and container, and the arrays that hold them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import loglik
from helpers.commands import refused, well
from loglik.cli.options import settings_of
from loglik.data import DataSpec, ImageSettings, array_names, as_data, eight_bit, from_arrays, load
from loglik.data.store import Rows

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def mixed(folder, n=12):
    """Write colour images of many sizes: left half black, right half white."""
    for i in range(n):
        pixels = np.zeros((20 + i, 40 + 2 * i, 3), np.uint8)
        pixels[:, 20 + i :] = 255
        save(folder / f"{i:02}.png", pixels)
    return folder


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_the_size_of_nearly_all_is_the_size_of_the_others(tmp_path) -> None:
    for i in range(19):
        save(tmp_path / f"{i:02}.png", noise(6, 5))
    save(tmp_path / "00.png", np.full((9, 30), 7, np.uint8))  # the first image is the odd one
    data = load(tmp_path)
    assert data.spec.event_shape == (1, 6, 5)
    assert data.notes == ("of 19 images: 1 resized to 5×6 pixels by fit=crop",)
    assert data.images == ImageSettings(resize="5x6")
    assert (data.split("all").x[0] == 7).all()
    again = load(tmp_path, images=data.images)
    assert torch.equal(again.split("all").x, data.split("all").x)
    assert load(save(tmp_path / "same" / "0.png", noise(6, 5)).parent).notes == ()


def test_sizes_that_differ_need_a_setting(tmp_path) -> None:
    mixed(tmp_path)
    line = refused("fit", tmp_path, "--model", "independent")
    assert "12 images of 12 sizes, 40×20 to 62×31 pixels, and at most 1 of one size: choose --set resize=64," in line
    for value in ("0", "64x", "3000", "x", "-4", "8x3000", "true"):
        with pytest.raises(ValueError, match="resize must be a size in pixels such as 64 or 64x48, WIDTHxHEIGHT"):
            ImageSettings(**settings_of([f"resize={value}"]))
    for setting, words in (
        ("fit=zoom", "fit must be crop, pad, stretch, got 'zoom'"),
        ("alpha=red", "alpha must be white, black, keep"),
        ("bits=12", "bits must be 8, got 12"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageSettings(**settings_of([setting]))
    with pytest.raises(ValueError, match="alpha=keep reads RGBA, and colour=grey has no colours"):
        ImageSettings(alpha="keep", colour="grey")
    np.save(tmp_path / "a.npy", noise(12, 4, 4))
    with pytest.raises(ValueError, match="are settings of image files, and this is images 1×4×4, 256 levels"):
        load(tmp_path / "a.npy", images=ImageSettings(resize=8))


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize(
    ("fit", "left", "right", "corner"),
    [("crop", [0, 3], [4, 7], 0), ("stretch", [0, 3], [4, 7], 0), ("pad", [0, 3], [4, 7], 255)],
)
def test_fits(fit, left, right, corner, stores, tmp_path, monkeypatch) -> None:
    if stores:
        monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "100")
    data = load(mixed(tmp_path), images=ImageSettings(resize="8x6", fit=fit))
    whole = data.split("all").tensor()
    assert isinstance(data.train.x, Rows) == stores
    assert whole.shape == (12, 3, 6, 8)
    assert data.notes == (f"of 12 images: 12 resized to 8×6 pixels by fit={fit}",)
    middle = whole[:, 0, 3]
    assert (middle[:, left[0]] == 0).all() and (middle[:, right[1]] == 255).all()
    assert (whole[:, :, 0, 0] == corner).all()  # the bar above a padded image is white
    black = load(tmp_path, images=ImageSettings(resize="8x6", fit="pad", alpha="black")).split("all").tensor()
    assert (black[:, :, 0] == 0).all()
    assert load(tmp_path, images=ImageSettings(resize=70)).notes[0].endswith("12 of them enlarged")


def test_a_crop_is_the_centre_and_a_photo_is_reduced_while_it_is_decoded(tmp_path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    for i in range(10):
        save(tmp_path / f"{i}.png", pixels)
        save(tmp_path / f"{i}.jpg", np.kron(pixels, np.ones((8, 8, 1), np.uint8)), quality=95)
    whole = load(tmp_path, images=ImageSettings(resize=10)).split("all").x
    assert (whole >= 230).all() and (whole[..., 1:-1] >= 250).all()


def test_a_thin_image_is_padded(tmp_path) -> None:
    save(tmp_path / "a.png", np.zeros((1, 900), np.uint8))
    whole = load(tmp_path, images=ImageSettings(resize=16, fit="pad")).split("all").x
    assert sorted(whole.unique().tolist()) == [0, 255] and (whole == 0).sum() == 16


# --- modes ------------------------------------------------------------------------------------------------------------


def test_transparency(tmp_path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, 2:] = 255, 0, 0, 255
    for i in range(10):
        save(tmp_path / f"{i}.png", noise(4, 4, 3) if i else rgba)
    for alpha, shown in (("white", 255), ("black", 0)):
        data = load(tmp_path, images=ImageSettings(alpha=alpha))
        assert data.notes == (f"of 10 images: 1 with transparency, shown on {alpha} (alpha={alpha})",)
        assert data.split("all").x[0, :, 0].T.tolist() == [[shown] * 3] * 2 + [[255, 0, 0]] * 2
    data = load(tmp_path, images=ImageSettings(alpha="keep"))
    assert data.spec.event_shape == (4, 4, 4)
    whole = data.split("all").x
    assert torch.equal(whole[0], torch.from_numpy(rgba).permute(2, 0, 1))
    assert (whole[1:, 3] == 255).all()
    assert torch.equal(load(tmp_path, like=data.spec).split("all").x, whole)


def test_colour_among_grey(tmp_path) -> None:
    for i in range(10):
        save(tmp_path / f"{i}.png", noise(4, 4))
    picture = Image.fromarray(noise(4, 4, 3))
    save(tmp_path / "9.png", picture)
    data = load(tmp_path)
    assert data.spec.event_shape == (3, 4, 4)
    assert data.notes == ("of 10 images: 9 grey, read as RGB like the 1 in colour",)
    grey = load(tmp_path, images=ImageSettings(colour="grey"))
    assert grey.spec.event_shape == (1, 4, 4)
    assert grey.notes == ("of 10 images: 1 in colour, converted by colour=grey",)
    assert np.array_equal(grey.split("all").x[9, 0], np.asarray(picture.convert("L")))
    (tmp_path / "9.png").unlink()
    assert load(tmp_path, images=ImageSettings(colour="rgb")).spec.event_shape == (3, 4, 4)


def test_sixteen_bits(tmp_path) -> None:
    values = RNG.integers(0, 2**16, (4, 4), dtype=np.uint16)
    for i in range(10):
        save(tmp_path / f"{i}.png", values)
    with pytest.raises(ValueError, match=r"mode I;16, more than 8 bits: set bits=8 to read 16 bits as 8, value // 256"):
        load(tmp_path)
    data = load(tmp_path, images=ImageSettings(bits=8))
    assert np.array_equal(data.split("all").x[0, 0], values // 256)
    assert data.notes == ("of 10 images: 10 of 16 bits, read as 8 bits (value // 256)",)
    save(tmp_path / "9.tif", Image.fromarray(np.full((4, 4), 0.5, np.float32)))
    with pytest.raises(ValueError, match=r"9\.tif: pixels of mode F, more than 8 bits"):
        load(tmp_path, images=ImageSettings(bits=8))


def test_exif_cmyk_palettes_and_frames(tmp_path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", noise(6, 4, 3))
    turned = Image.fromarray(np.uint8([[0] * 2 + [255] * 4] * 4)).convert("RGB")  # 6 wide, 4 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    save(tmp_path / "5.jpg", turned, exif=exif, quality=100)
    save(tmp_path / "6.jpg", Image.new("CMYK", (4, 6), (0, 255, 255, 0)), quality=100)
    frames = [Image.new("P", (4, 6), value) for value in (3, 4)]
    for frame in frames:
        frame.putpalette([value for i in range(256) for value in (i, 0, 2 * i % 256)])
    save(tmp_path / "7.gif", frames[0], save_all=True, append_images=frames[1:])
    data = load(tmp_path)
    whole = data.split("all").x
    assert whole.shape == (8, 3, 6, 4)
    assert (whole[5, :, 0] < 9).all() and (whole[5, :, 5] > 246).all()
    assert whole[6, 0].min() > 246 and whole[6, 1:].max() < 9
    assert whole[7, :, 0, 0].tolist() == [3, 0, 6]
    assert data.notes == (
        "of 8 images: 1 in CMYK, converted to RGB; 1 turned as their EXIF data say; 1 of several frames, of which the "
        "first is read",
    )


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_reads_other_images_as_its_own(tmp_path) -> None:
    mixed(tmp_path / "photos", 30)
    save(tmp_path / "new" / "a.png", noise(50, 20, 4))
    save(tmp_path / "new" / "b.png", noise(6, 8, 3))
    run = tmp_path / "run"
    options = [x for s in ("resize=8x6", "fit=pad", "alpha=black") for x in ("--set", s)]
    printed = well("fit", tmp_path / "photos", "--model", "independent", "--out", run, *options)
    assert "of 30 images: 30 resized to 8×6 pixels by --set fit=pad" in printed
    assert loglik.load(run).config["images"] == {
        "resize": "8x6", "fit": "pad", "alpha": "black", "colour": "auto", "bits": None,
    }  # fmt: skip
    assert "resized" not in well("evaluate", run)  # which was said before
    printed = well("evaluate", run, tmp_path / "new")
    assert "of 2 images: 1 resized to 8×6 pixels by fit=pad; 1 with transparency, shown on black" in printed
    well("sample", run, "-n", 4, "--out", tmp_path / "a.png")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("fit: pad", "fit: pat"))
    (run / "config.sha256").unlink()
    assert "fit must be crop, pad, stretch, got 'pat'" in refused("evaluate", run)


def test_samples_with_alpha_are_pictures(tmp_path) -> None:
    for i in range(20):
        save(tmp_path / "in" / f"{i}.png", noise(4, 4, 4))
    well("fit", tmp_path / "in", "--model", "independent", "--set", "alpha=keep", "--out", tmp_path / "run")
    well("sample", tmp_path / "run", "-n", 3, "--out", tmp_path / "out")
    (first, *_) = sorted((tmp_path / "out").iterdir())
    with Image.open(first) as picture:
        assert picture.mode == "RGBA"


# --- arrays -----------------------------------------------------------------------------------------------------------

X = noise(30, 6 * 5 * 3).reshape(30, 6, 5, 3)  # channels last
FIRST = X.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    "x",
    [
        X / 255,
        (X / np.float32(255)).astype(np.float32),
        (FIRST / 255).astype(np.float16),
        (FIRST / np.float32(255) - np.float32(0.5)) / np.float32(0.5),
        torch.from_numpy(FIRST / 255).float(),
    ],
)
def test_floating_point_images_of_eight_bits(x) -> None:
    data = from_arrays(x)
    assert data.spec == DataSpec(kind="image", event_shape=(3, 6, 5), levels=256)
    assert torch.equal(data.split("all").x, torch.from_numpy(FIRST))
    assert "all multiples of 1/255: read as images of 256 levels" in data.notes[0]
    assert torch.equal(from_arrays(x, like=data.spec).split("all").x, torch.from_numpy(FIRST))
    kept = from_arrays(x, kind="array")
    assert (kept.spec.kind, kept.spec.levels) == ("array", None)


def test_floating_point_arrays_that_are_no_images() -> None:
    x = X / 255
    for other in (x + 0.001, x * 255, x[:, 0, 0], np.ones((30, 6, 5)), x - 1 / 255):
        assert from_arrays(other).spec.levels is None
    binary = from_arrays((X[..., 0] > 99).astype(np.float32))
    assert (binary.spec.kind, binary.spec.levels) == ("image", 2)
    with pytest.raises(ValueError, match="floating-point numbers, expected integers 0 to 1"):
        from_arrays(x[..., 0], like=binary.spec)
    for bad, words in ((np.where(x > 0.9, np.nan, x), "NaN or infinity"), ([[1.0, 2.0], [3.0]], "differ in length")):
        with pytest.raises(ValueError, match=words) as error:
            as_data(bad)
        assert "\n" not in str(error.value)
    assert eight_bit.fitting_scales(np.array([[np.nan, 0.0]])) == set()


@pytest.mark.parametrize(
    ("shape", "event", "words"),
    [
        ((30, 6, 5, 3), (3, 6, 5), "6 × 5 × 3 read as images with their channels last"),
        ((30, 6, 5, 4), (4, 6, 5), "6 × 5 × 4 read as images with their channels last"),
        ((30, 3, 5, 3), (3, 5, 3), "3 × 5 × 3 read with their channels first: transpose"),
        ((30, 4, 5, 3), (3, 4, 5), "4 × 5 × 3 read with their channels last: transpose"),
        ((30, 4, 6, 5), (4, 6, 5), ""),
        ((30, 6, 5), (1, 6, 5), ""),
    ],
)
def test_channels(shape, event, words) -> None:
    data = from_arrays(RNG.integers(0, 256, shape, dtype=np.uint8))
    assert data.spec.event_shape == event
    assert (words in "".join(data.notes)) if words else data.notes == ()


def test_dictionaries_lists_and_keys(tmp_path) -> None:
    y = np.arange(30) % 3
    reference = from_arrays(X, y)
    for data in (
        as_data({"image": X, "label": y}),
        as_data({"images": X, "kind": y}, label="kind"),
        as_data((list(X), y)),
        as_data([{"image": Image.fromarray(x), "label": int(c)} for x, c in zip(X, y, strict=True)]),
    ):
        assert data.spec.event_shape == (3, 6, 5) and data.spec.classes == ("0", "1", "2")
        assert torch.equal(data.split("all").x, reference.split("all").x)
        assert torch.equal(data.split("all").y, reference.split("all").y)
    np.savez(tmp_path / "a.npz", train_images=X[:20], train_labels=y[:20], val_images=X[20:25], val_labels=y[20:25])
    data = load(tmp_path / "a.npz")
    assert (len(data.train) + len(data.test), len(data.validation)) == (20, 5)
    np.savez(tmp_path / "b.npz", images=X, kind=y)
    data = load(tmp_path / "b.npz", label="kind")
    assert (data.spec.classes, data.spec.label) == (("0", "1", "2"), "kind")
    np.save(tmp_path / "c.npy", X)
    for other in (
        load(tmp_path / "c.npy", label="kind", like=data.spec),
        as_data({"x": X}, label="kind", like=data.spec),
    ):
        assert other.train.y is None  # a run's own name for its labels, which other data need not have
    for keys, label, words in (
        (["images", "kind"], None, 'found the keys images, kind; expected one array, or x and y.* label="NAME"'),
        (["images", "y"], "kind", "no array 'kind' for the label; found the keys images, y"),
        (["x", "image"], None, "found the keys image, x"),
        (["test_x", "test_y"], None, "found the keys test_x, test_y"),
        (["x_train", "y_train", "x_test"], None, "found the keys"),
    ):
        with pytest.raises(ValueError, match=words):
            array_names.named_splits(keys, label, "a.npz")


# --- data sets --------------------------------------------------------------------------------------------------------


class Photos(Dataset):
    """PIL images of many sizes with labels, as torchvision's data sets have them."""

    classes = ("cat", "dog")

    def __init__(self, n=20):
        self.items = [(Image.fromarray(noise(20 + i, 30, 3)), i % 2) for i in range(n)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_a_dataset_of_photos_of_many_sizes() -> None:
    with pytest.raises(ValueError, match=r"Photos: 20 images of 20 sizes, 30×20 to 30×39 pixels.* choose resize=64"):
        as_data(Photos())
    data = as_data(Photos(), images=ImageSettings(resize=8))
    assert (data.spec.event_shape, data.spec.classes) == ((3, 8, 8), ("cat", "dog"))
    assert data.notes == ("of 20 images: 20 resized to 8×8 pixels by fit=crop",)
    run = loglik.fit("independent", Photos(), resize=8, max_steps=1)
    assert run.config["images"]["resize"] == "8x8"
    result = loglik.evaluate(run, Photos(5))
    assert result.n == 5 and result.notes[0] == "of 5 images: 5 resized to 8×8 pixels by fit=crop"
    items = [{"img": image, "kind": "ab"[y]} for image, y in Photos()]
    data = as_data(Streamed(items), label="kind", images=ImageSettings(resize=8))
    assert (data.spec.classes, data.spec.label) == (("a", "b"), "kind")
    for wrong, label, words in (
        (items, "species", r"Streamed\[0\]: no 'species' for the label; found img, kind"),
        ([*items, {"img": X[0], "kind": "a"}], None, r"Streamed\[20\] is ndarray, but Streamed\[0\] is a PIL image"),
        ([(items[0]["img"], 0.5)], None, r"Streamed\[0\]: a label of type float"),
        ([(X[0], 1)], "kind", r'Streamed\[0\] is no dict, so it has no key label="kind"'),
        ([], None, "Streamed: no items"),
    ):
        with pytest.raises(ValueError, match=words):
            as_data(Streamed(wrong), label=label, images=ImageSettings(resize=8))
    with pytest.raises(ValueError, match="are settings of images that are files or PIL images"):
        as_data(Streamed(list(X)), images=ImageSettings(resize=8))


def test_tensors_of_a_dataset_are_eight_bit(monkeypatch) -> None:
    for stores in (False, True):
        if stores:
            monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "100")
            monkeypatch.setattr(loglik.data.items, "BLOCK", 7)
        for shift, scale in ((0.0, 255.0), (127.5, 127.5)):
            items = [((torch.from_numpy(x) - shift) / scale, 0) for x in FIRST.astype(np.float32)]
            data = as_data(Streamed([x for x, _ in items]))
            assert data.spec == DataSpec(kind="image", event_shape=(3, 6, 5), levels=256)
            assert torch.equal(data.split("all").tensor(), torch.from_numpy(FIRST))
            assert isinstance(data.train.x, Rows) == stores
        real = as_data(Streamed([*[x for x, _ in items], torch.full((3, 6, 5), 0.3)]))
        assert real.spec == DataSpec(kind="array", event_shape=(3, 6, 5))


def test_hugging_face_objects() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]))
    photos = [image for image, _ in Photos()]
    found = datasets.Dataset.from_dict({"picture": photos, "kind": [i % 2 for i in range(20)]}, features=features)
    settings = ImageSettings(resize=8)
    data = as_data(found, label="kind", images=settings)
    assert (data.spec.event_shape, data.spec.classes) == ((3, 8, 8), ("cat", "dog"))
    assert as_data(found, images=settings).spec.classes == ()
    half = found.select(range(12)).with_format("torch")
    parts = as_data(datasets.DatasetDict(train=half, test=found.select([12, 13])), label="kind", images=settings)
    assert (len(parts.train) + len(parts.validation), len(parts.test)) == (12, 2)
    assert torch.equal(parts.split("all").x[:12], data.split("all").x[:12])
    streamed = as_data(found.to_iterable_dataset(), label="kind", images=settings)
    assert torch.equal(streamed.split("all").tensor(), data.split("all").x)
    table = as_data(datasets.Dataset.from_dict({"a": [0.5, 1.5] * 10, "b": ["x", "y"] * 10}), label="b")
    assert (table.spec.kind, table.spec.classes, len(table.spec.columns)) == ("table", ("x", "y"), 1)
    arrays = as_data(datasets.Dataset.from_dict({"x": [x.tolist() for x in X[..., 0]], "y": [0, 1] * 15}))
    assert (arrays.spec.event_shape, arrays.spec.classes) == ((6, 5), ("0", "1"))
    for wrong, label, words in (
        (found, "species", "Dataset: no 'species' for the label; found picture, kind"),
        (found.select([]), None, "Dataset: no rows"),
        (datasets.DatasetDict(a=found), None, "DatasetDict: no split named train; found a"),
    ):
        with pytest.raises(ValueError, match=words):
            as_data(wrong, label=label, images=settings)
