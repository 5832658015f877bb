"""Tables in memory: pandas, polars, Arrow and dictionaries of columns are read as the same table."""

import datetime
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from loglik.data import as_data

N = 40
DAYS = [datetime.datetime(2024, 1, 1) + datetime.timedelta(days=i) for i in range(N)]
COLUMNS = {
    "n": [None if i % 7 == 0 else i for i in range(N)],
    "x": [None if i % 5 == 0 else i / 4 for i in range(N)],
    "town": [None if i % 9 == 0 else ["Ulm", "Bonn"][i % 2] for i in range(N)],
    "member": [i % 3 == 0 for i in range(N)],
    "day": [None if i == 3 else day for i, day in enumerate(DAYS)],
    "y": ["no", "yes"] * (N // 2),
}
FRAME = pl.DataFrame(COLUMNS)


def check_same(data: loglik.data.Data, other: loglik.data.Data) -> None:
    assert data.spec == other.spec
    for one, two in ((data.test, other.test), (data.train, other.train)):
        assert torch.equal(one.x.nan_to_num(-1), two.x.nan_to_num(-1)) and torch.equal(one.y, two.y)


def test_polars_arrow_and_dictionaries() -> None:
    data = as_data(FRAME, label="y")
    assert [(c.type, c.missing) for c in data.spec.columns] == [
        ("integer", True), ("numeric", True), ("categorical", True), ("boolean", False), ("integer", True),
    ]  # fmt: skip
    check_same(data, as_data(FRAME.lazy(), label="y"))
    check_same(data, as_data(COLUMNS, label="y"))
    check_same(data, as_data((FRAME.drop("y"), FRAME["y"])))
    arrays = COLUMNS | {"x": torch.tensor([np.nan if v is None else v for v in COLUMNS["x"]], dtype=torch.float64)}
    check_same(data, as_data(arrays | {"day": np.array(COLUMNS["day"], dtype="M8[ns]")}, label="y"))
    if pyarrow := pytest.importorskip("pyarrow"):
        check_same(data, as_data(pyarrow.table(COLUMNS), label="y"))


def test_pandas_of_every_type() -> None:
    pandas = pytest.importorskip("pandas")
    data, frame = as_data(FRAME, label="y"), pandas.DataFrame(COLUMNS)
    check_same(data, as_data(frame, label="y"))
    check_same(data, as_data((frame.drop(columns="y"), frame["y"])))
    check_same(data, as_data((frame.drop(columns="y"), frame["y"].rename(None).to_numpy()), like=data.spec))
    nullable = frame.assign(n=frame["n"].astype("Int64"), member=frame["member"].astype("boolean"))
    check_same(data, as_data(nullable.assign(town=frame["town"].astype("string")), label="y"))
    check_same(data, as_data(frame.assign(town=frame["town"].astype("category")), label="y"))
    sizes = pandas.Categorical(["small", "large"] * 20, categories=["small", "medium", "large"], ordered=True)
    ordered = as_data(frame.assign(town=sizes), label="y")
    assert ordered.spec.columns[2].categories == ("small", "medium", "large")
    zoned = as_data(pandas.DataFrame({"t": pandas.Series(DAYS).dt.tz_localize("Europe/Paris")}))
    assert (zoned.spec.columns[0].zone, zoned.spec.columns[0].unit) == ("Europe/Paris", "1h")


def test_pandas_without_pyarrow() -> None:
    pytest.importorskip("pandas")
    code = """
import sys
sys.modules["pyarrow"] = None
import pandas, numpy as np
from loglik.data import as_data
frame = pandas.DataFrame({"a": [1.5, None] * 10, "b": ["x", "y"] * 10, "t": pandas.to_datetime(["2024-01-01"] * 20)})
data = as_data(frame)
print([c.type for c in data.spec.columns], int(data.split("all").x.isnan().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['numeric', 'categorical', 'integer'] 10", done.stderr


def test_training_and_scoring_a_frame() -> None:
    frame = FRAME.select("member", day=pl.Series(range(N)), town=pl.Series(["Ulm", "Bonn"] * 20))
    run = loglik.fit("independent", frame, columns={"day": "numeric"})
    assert [c.type for c in run.spec.columns] == ["boolean", "numeric", "categorical"]
    assert run.config["table"] == {"missing": "model", "columns": {"day": "numeric"}, "unseen": "score"}
    assert loglik.evaluate(run, frame).n == N
    other = frame.with_columns(town=pl.lit("Rom"))
    with pytest.raises(ValueError, match="row 1, column 'town': 'Rom' is none of the categories Bonn, Ulm"):
        loglik.evaluate(run, other, unseen="refuse")


def test_errors() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1, 2]] * 12, columns=["a", "a"])
    multi = pandas.DataFrame([[1, 2]] * 12, columns=pandas.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    numbered = pandas.DataFrame([[1, 2]] * 12)
    mixed = pandas.DataFrame({"a": [1, "x"] * 6})
    for data, words in (
        (frame, "two columns are named 'a': rename one"),
        (multi, "its columns have a MultiIndex: give each column one name"),
        (numbered.set_index([0, 1]), "its rows have a MultiIndex"),
        (numbered, "a column is named 0: name all columns by strings"),
        (mixed, "column 'a' holds values of mixed types, int, str"),
        ({"a": [1, 2], "b": [1]}, "its columns have 1, 2 rows: give all as many"),
        ((FRAME.drop("y"), [1, 2]), "2 labels for 40 rows"),
        ((FRAME, FRAME["y"]), "a column is named 'y', as the labels are"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            as_data(data)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no column 'z' for the label; the columns are n, x"):
        as_data(FRAME, label="z")
    with pytest.raises(ValueError, match="are settings of tables, and these are arrays 2"):
        loglik.fit("independent", np.zeros((20, 2)), missing="refuse")
