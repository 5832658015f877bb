"""Splits, labels and arrays."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loglik.data import DataSpec, from_arrays, load
from loglik.data.labels import code_labels
from loglik.training import fit

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(50, 3))
PIXELS = RNG.integers(0, 256, size=(20, 5, 4), dtype=np.uint8)


@given(n=st.integers(10, 200), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_random_splits_are_a_partition_and_all_is_in_order(n: int, seed: int) -> None:
    x = torch.arange(2.0 * n).reshape(n, 2)
    data = from_arrays(x, torch.arange(n) % 2, seed=seed)
    assert len(data.validation) == len(data.test) == n // 10
    whole = data.split("all")
    assert torch.equal(whole.x, x)
    assert torch.equal(whole.y, torch.arange(n) % 2)
    assert torch.equal(whole.index, torch.arange(n))
    again = from_arrays(x, seed=seed)
    assert torch.equal(again.train.x, data.train.x)
    assert torch.equal(x[data.test.index], data.test.x)


def test_split_names() -> None:
    data = from_arrays(FLOATS)
    assert data.split("test") is data.test
    with pytest.raises(ValueError, match="no split named 'dev': use train, validation, test or all"):
        data.split("dev")


def test_few_examples_are_enough_to_evaluate_and_too_few_to_train() -> None:
    data = from_arrays(FLOATS[:3])
    assert len(data.split("all")) == 3
    with pytest.raises(ValueError, match=r"the validation split is empty: give at least 10 examples"):
        fit("independent", data)


@pytest.mark.parametrize(
    ("x", "kind", "shape", "levels", "dtype"),
    [
        (FLOATS, "array", (3,), None, torch.float32),
        (FLOATS[:, 0], "array", (1,), None, torch.float32),
        (FLOATS.astype(np.float16), "array", (3,), None, torch.float32),
        (torch.zeros(10, 2, dtype=torch.bfloat16), "array", (2,), None, torch.float32),
        (PIXELS, "image", (1, 5, 4), 256, torch.uint8),
        (PIXELS % 17, "image", (1, 5, 4), 17, torch.uint8),
        (PIXELS > 9, "image", (1, 5, 4), 2, torch.uint8),
        (np.stack([PIXELS] * 3, 1), "image", (3, 5, 4), 256, torch.uint8),
        (np.stack([PIXELS] * 3, 3), "image", (3, 5, 4), 256, torch.uint8),
        (np.stack([PIXELS] * 2, 3), "array", (5, 4, 2), int(PIXELS.max()) + 1, torch.uint8),
        (PIXELS.reshape(20, 20), "array", (20,), int(PIXELS.max()) + 1, torch.uint8),
        (PIXELS.astype(np.int64) * 2, "array", (5, 4), 2 * int(PIXELS.max()) + 1, torch.int64),
        (np.zeros((10, 2), bool), "array", (2,), 2, torch.uint8),
    ],
)
def test_kinds_of_arrays(x, kind, shape, levels, dtype) -> None:
    data = from_arrays(x)
    assert data.spec == DataSpec(kind=kind, event_shape=shape, levels=levels)
    assert data.train.x.dtype == dtype
    assert data.train.x.shape[1:] == shape


def test_channels_last_becomes_channels_first() -> None:
    last = RNG.integers(0, 256, size=(12, 5, 4, 3), dtype=np.uint8)
    whole = from_arrays(last).split("all").x
    assert torch.equal(whole, torch.from_numpy(last).permute(0, 3, 1, 2))


def _hole(index: tuple[int, int], value: float) -> np.ndarray:
    x = FLOATS.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (_hole((7, 2), np.nan), r"NaN or infinity .* at index \(7, 2\)"),
        (_hole((0, 1), 1e300), r"NaN or infinity .* at index \(0, 1\)"),
        (np.full((10, 2), -1), r"negative value at index \(0, 0\)"),
        (np.full((10, 2), 65_536), r"value 65536 at \(0, 0\): discrete arrays have at most 65,536 levels"),
        (np.zeros((0, 3)), r"no examples: the shape is \(0, 3\)"),
        (np.zeros((10, 3), complex), "an array of type complex128"),
        (np.array([["a"]] * 10), "an array of type <U1"),
    ],
)
def test_array_errors(x, words) -> None:
    with pytest.raises(ValueError, match=words) as error:
        from_arrays(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "classes", "codes"),
    [
        ([10, 9, 9, -1], ("-1", "9", "10"), [2, 1, 1, 0]),
        (["b10", "b9", "a", "b9"], ("a", "b9", "b10"), [2, 1, 0, 1]),
        ([True, False, True, True], ("false", "true"), [1, 0, 1, 1]),
        ([2.0, 1.0, 1.0, 2.0], ("1", "2"), [1, 0, 0, 1]),
    ],
)
def test_labels(y, classes, codes) -> None:
    coded, found = code_labels(np.array(y), str)
    assert found == classes
    assert coded.tolist() == codes


def test_labels_into_given_classes() -> None:
    x, y = FLOATS[:10], np.arange(10) % 2
    assert from_arrays(x, y, classes=["cat", "dog"]).split("all").y.tolist() == y.tolist()
    assert from_arrays(x, y, classes=["1", "0"]).split("all").y.tolist() == (1 - y).tolist()
    words = from_arrays(x, ["dog", "cat"] * 5, classes=["dog", "cat"])
    assert words.spec.classes == ("dog", "cat")
    assert words.split("all").y.tolist() == y.tolist()


@pytest.mark.parametrize(
    ("y", "classes", "words"),
    [
        (np.zeros(50, int), None, r"array: y\[0\]: all labels are '0'"),
        (
            np.arange(50) + 0.5,
            None,
            r"y\[0\]: the label 0.5 is not an integer, so it names no class: leave the label out",
        ),
        (np.arange(49), None, "50 examples but 49 labels"),
        (np.zeros((50, 2), int), None, r"labels have the shape \(50, 2\)"),
        (np.arange(50) % 3, ["cat", "dog"], r"y\[2\]: the label '2' is none of '0', '1'"),
        (["fox"] * 50, ["cat", "dog"], r"y\[0\]: the label 'fox' is none of 'cat', 'dog'"),
    ],
)
def test_label_errors(y, classes, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_arrays(FLOATS, y, classes=classes)


def test_like_codes_as_the_model_does() -> None:
    spec = from_arrays(PIXELS, np.arange(20) % 2, classes=["cat", "dog"]).spec
    data = from_arrays(PIXELS[:4], ["dog"] * 4, like=spec)
    assert data.spec is spec
    assert data.split("all").y.tolist() == [1] * 4
    assert from_arrays(PIXELS[:4], like=spec).train.y is None
    unlabelled = from_arrays(PIXELS).spec
    assert from_arrays(PIXELS, np.zeros(20, int), like=unlabelled).train.y is None


@pytest.mark.parametrize(
    ("x", "spec", "words"),
    [
        (
            PIXELS[:, :4],
            DataSpec(kind="image", event_shape=(1, 5, 4), levels=256),
            r"\(1, 4, 4\), expected \(1, 5, 4\)",
        ),
        (
            np.full((5, 2), 20),
            DataSpec(kind="array", event_shape=(2,), levels=17),
            r"value 20 at index \(0, 0\) is above 16",
        ),
        (FLOATS, DataSpec(kind="array", event_shape=(3,), levels=17), "expected integers 0 to 16"),
    ],
)
def test_like_errors(x, spec, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_arrays(x, like=spec)


def test_npy_and_npz(tmp_path) -> None:
    np.save(tmp_path / "a.npy", FLOATS)
    assert load(tmp_path / "a.npy").name == "a"
    np.savez(tmp_path / "one.npz", data=FLOATS)
    assert len(load(tmp_path / "one.npz").split("all")) == 50
    np.savez(tmp_path / "xy.npz", x=PIXELS, y=np.arange(20) % 2)
    assert load(tmp_path / "xy.npz").spec.classes == ("0", "1")
    y = np.arange(20) % 2
    np.savez(tmp_path / "keras.npz", x_train=PIXELS, y_train=y, x_test=PIXELS[:7], y_test=y[:7])
    keras = load(tmp_path / "keras.npz")
    assert (len(keras.train), len(keras.validation), len(keras.test)) == (18, 2, 7)
    assert torch.equal(keras.test.x[:, 0], torch.from_numpy(PIXELS[:7]))
    assert torch.equal(keras.split("all").x[:, 0], torch.from_numpy(np.concatenate([PIXELS, PIXELS[:7]])))


def test_npy_and_npz_errors(tmp_path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}, None], dtype=object))
    with pytest.raises(ValueError, match=r"o\.npy: holds Python objects, which loglik never unpickles"):
        load(tmp_path / "o.npy")
    np.savez(tmp_path / "k.npz", a=FLOATS, b=FLOATS)
    with pytest.raises(ValueError, match=r"k\.npz: found the keys a, b; expected one array, or x and y"):
        load(tmp_path / "k.npz")
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nonsense")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("bad.npy", "bad.npz", "empty.npy"):
        with pytest.raises(ValueError, match=r"not a readable NumPy file|holds Python objects") as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_listing_names_imports_no_torch() -> None:
    code = "import sys; import loglik.data as d; d.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
