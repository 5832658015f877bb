"""The data sets that loglik knows by name."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from loglik.data.arrays import assemble
from loglik.data.dataset import Data
from loglik.data.spec import DataSpec
from loglik.data.table_settings import TableSettings

__all__ = ["load_named"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_named(
    name: str,
    *,
    label: str | None = None,
    seed: int = 0,
    like: DataSpec | None = None,
    table: TableSettings | None = None,
) -> Data:
    """Read a data set by a name of the catalogue.

    Raises:
        ValueError: Fashion-MNIST's files are not on this machine or not readable.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return assemble(digits.images.astype(np.uint8), digits.target, seed=seed, name=name, like=like)
    if name == "fashion-mnist":
        return _fashion_mnist(seed, like)
    return _sklearn_table(name, label, seed, like, table)


def _sklearn_table(name: str, label: str | None, seed: int, like: DataSpec | None, table: TableSettings | None) -> Data:
    """scikit-learn's tables hold integers as floats; here they are integers again."""
    import polars as pl
    from sklearn import datasets

    from loglik.data.tables import from_frame

    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        target = pl.Series("progression", bunch.target)
    else:
        bunch = datasets.load_wine() if name == "wine" else datasets.load_breast_cancer()
        target = pl.Series("class", np.asarray(bunch.target_names)[bunch.target])
        label = label or "class"
    columns = [pl.Series(str(key), bunch.data[:, d]) for d, key in enumerate(bunch.feature_names)]
    columns = [
        s.cast(pl.Int64) if s.dtype.is_float() and bool((s == s.floor()).all()) else s for s in [*columns, target]
    ]
    return from_frame(pl.DataFrame(columns), name=name, source=name, label=label, seed=seed, like=like, table=table)


def _fashion_mnist(seed: int, like: DataSpec | None) -> Data:
    """Its own 10,000 test images stay the test split; validation is cut from the 60,000 others."""
    own = os.environ.get("LOGLIK_DATA")
    folders = ([Path(own), Path(own) / "fashion-mnist"] if own else []) + [DEBIAN]
    folder = next((f for f in folders if (f / "train-images-idx3-ubyte.gz").exists()), None)
    if folder is None:
        raise ValueError(
            f"fashion-mnist is not in {' or '.join(map(str, folders))}: install Debian's package "
            "dataset-fashion-mnist, or set LOGLIK_DATA to the folder of its four .gz files, "
            "or use hf:fashion_mnist"
        )
    x, y = (
        [_idx(folder / f"{part}-{what}.gz") for part in ("train", "t10k")]
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return assemble(
        np.concatenate(x),
        np.concatenate(y),
        seed=seed,
        name="fashion-mnist",
        where=str(folder),
        like=like,
        classes=FASHION,
        sizes={"train": len(x[0]), "test": len(x[1])},
    )


def _idx(path: Path) -> np.ndarray:
    """A compressed IDX file of bytes: 0, 0, 8, the number of dimensions, each as 4 bytes, then the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
        dims = np.frombuffer(raw, ">u4", raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: Fashion-MNIST is four files") from None
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a readable IDX file ({error})") from None
