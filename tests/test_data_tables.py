"""Tables from .csv and .parquet files."""

import datetime

import numpy as np
import polars as pl
import pytest
import torch

from loglik.data import TableSettings, load

REFUSE = TableSettings(missing="refuse", unseen="refuse")

N = 40
FRAME = pl.DataFrame(
    {
        "height": np.linspace(1.5, 1.9, N),
        "age": np.arange(N) + 20,
        "town": ["Ulm", "Bonn", "Köln", "Jena"] * (N // 4),
        "member": [True, False] * (N // 2),
        "kind": ["b10", "b9"] * (N // 2),
    }
)


@pytest.fixture(params=["csv", "parquet"])
def path(request, tmp_path):
    path = tmp_path / f"people.{request.param}"
    FRAME.write_csv(path) if request.param == "csv" else FRAME.write_parquet(path)
    return path


def test_names_in_quotes(tmp_path) -> None:
    path = tmp_path / "quoted.csv"
    rows = "".join(f'{i}.5,"a ""q"" {i % 2}","b, c"\n' for i in range(20))
    path.write_text('"size, in m","the ""kind""",\n' + rows)
    columns = load(path).spec.columns
    assert [column.name for column in columns[:2]] == ["size, in m", 'the "kind"'] and columns[2].name
    assert columns[1].categories == ('a "q" 0', 'a "q" 1') and columns[2].categories == ("b, c",)


def test_a_table_of_every_type(path) -> None:
    data = load(path, label="kind")
    assert data.name == "people"
    assert [(c.name, c.type, c.categories) for c in data.spec.columns] == [
        ("height", "numeric", ()),
        ("age", "integer", ()),
        ("town", "categorical", ("Bonn", "Jena", "Köln", "Ulm")),
        ("member", "boolean", ("false", "true")),
    ]
    assert data.spec.classes == ("b9", "b10")
    assert data.spec.label == "kind"
    assert data.spec.levels is None
    whole = data.split("all")
    assert whole.x.dtype == torch.float32
    assert whole.x[:4, 1:].tolist() == [[20, 3, 1], [21, 0, 0], [22, 2, 1], [23, 1, 0]]
    assert whole.y[:4].tolist() == [1, 0, 1, 0]
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)


def test_like_finds_columns_by_name(path, tmp_path) -> None:
    spec = load(path, label="kind").spec
    few = FRAME.select("extra" if c == "x" else c for c in ["town", "member", "age", "height"]).head(3)
    few.write_csv(tmp_path / "few.csv")
    data = load(tmp_path / "few.csv", like=spec)
    assert data.spec is spec
    assert data.train.y is None
    assert data.split("all").x[:, 1:].tolist() == [[20, 3, 1], [21, 0, 0], [22, 2, 1]]
    assert load(path, like=spec).split("all").y[:2].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            pl.lit("Rom").alias("town"),
            r"row 1 \(line 2\), column 'town': 'Rom' is none of the categories Bonn, Jena",
        ),
        (pl.lit("x").alias("height"), r"row 1 \(line 2\), column 'height': 'x' is not a number"),
        (pl.lit(0.5).alias("age"), r"row 1 \(line 2\), column 'age': 0.5 is not an integer"),
        (
            pl.lit("b11").alias("kind"),
            r"row 1 \(line 2\), column 'kind': the label 'b11' is none of 'b9', 'b10'",
        ),
    ],
)
def test_like_errors(tmp_path, change, words) -> None:
    FRAME.write_csv(tmp_path / "a.csv")
    spec = load(tmp_path / "a.csv", label="kind").spec
    FRAME.with_columns(change).write_csv(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "b.csv", like=spec, table=REFUSE)
    FRAME.drop("town").write_csv(tmp_path / "c.csv")
    with pytest.raises(ValueError, match="no column 'town', which the model needs; found height, age"):
        load(tmp_path / "c.csv", like=spec)
    with pytest.raises(ValueError, match="the label is 'town', but the model's label is 'kind'"):
        load(tmp_path / "a.csv", like=spec, label="town")
    with pytest.raises(ValueError, match="this is a table, but the model accepts images 1×8×8"):
        load(tmp_path / "a.csv", like=load("digits").spec)


def test_categories_that_look_like_numbers_stay_texts_for_the_model(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "01,1\nx,2\n" * 10)
    (tmp_path / "b.csv").write_text("a,b\n01,1\n01,2\n")
    spec = load(tmp_path / "a.csv").spec
    assert load(tmp_path / "b.csv", like=spec).split("all").x[:, 0].tolist() == [0, 0]


def test_blanks_semicolons_and_big_numbers(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a; b;c\n" + "1; 2;9000000\n2; 3.5;TRUE\n".replace("TRUE", "1") * 10)
    data = load(tmp_path / "a.csv")
    assert [(c.name, c.type) for c in data.spec.columns] == [
        ("a", "integer"),
        ("b", "numeric"),
        ("c", "numeric"),
    ]
    assert data.split("all").x[0].tolist() == [1, 2, 9_000_000]


def test_labels_sort_as_numbers(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n" + "1,10\n2,9\n" * 10)
    assert load(tmp_path / "a.csv", label="y").spec.classes == ("9", "10")
    (tmp_path / "b.csv").write_text("a,y\n" + "1,True\n2,False\n" * 10)
    assert load(tmp_path / "b.csv", label="y").spec.classes == ("false", "true")


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("", None, "the file is empty"),
        ("a,b\n", None, "the table has no rows"),
        ("a,b\n1,2\n3,\n", None, r"bad\.csv: row 2 \(line 3\), column 'b': the value is missing"),
        ("a,b\n1,2\n3,NaN\n", None, r"row 2 \(line 3\), column 'b': the value is missing"),
        ("a,b\n1,2\n3,NA\n", "b", r"row 2 \(line 3\), column 'b': the label is missing"),
        ("a,b\n1,inf\n", None, r"row 1 \(line 2\), column 'b': inf is not a finite number"),
        ("a,b\n1,2\n3,4,5\n", None, r"bad\.csv: line 3 has 3 fields, the header has 2"),
        ("a, a\n1,2\n", None, "two columns are named 'a': rename one"),
        ("a,a\n1,2\n", None, "two columns are named 'a': rename one"),
        ("1,1\n3,4\n", None, "line 1 holds numbers: give the columns' names there"),
        ("a,b\n1,2\n\n3,4\n", None, r"row 2 \(line 3\), column 'a': the value is missing"),
        ("1,2\n3,4\n", None, "line 1 holds numbers: give the columns' names there"),
        ("a,b\n1,2\n", "c", "no column 'c' for the label; the columns are a, b"),
        ("a\n1\n2\n", "a", "no columns besides the label 'a'"),
        ("a,y\n1,5\n2,5\n", "y", r"row 1 \(line 2\), column 'y': all labels are '5'"),
        ("a,y\n1,5\n2,5.5\n", "y", r"row 2 \(line 3\), column 'y': the label 5.5 is not an integer"),
        (
            "id,name\n" + "".join(f"n{i},m{i}\n" for i in range(30)),
            None,
            "no column can be modelled .id: it has 30 distinct texts in 30 values, too many for categories; name",
        ),
        (
            "a,id\n1,x\n" + "".join(f"1,{i}\n" for i in range(30)),
            None,
            r"row 1 \(line 2\), column 'id': 'x' is not a number",
        ),
        (
            "a,id\n" + "".join(f"1,{i}\n" for i in range(30)),
            "id",
            "30 distinct labels in 30 rows are too many for classes",
        ),
    ],
)
def test_csv_errors(tmp_path, text, label, words) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load(tmp_path / "bad.csv", label=label, table=REFUSE)
    assert "\n" not in str(error.value)


def test_files_that_do_not_parse(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\nx\xff\xfe,1\n")
    with pytest.raises(ValueError, match=r"a\.csv: not UTF-8 text .*: save it as UTF-8"):
        load(tmp_path / "a.csv")
    (tmp_path / "b.parquet").write_bytes(b"nonsense nonsense")
    with pytest.raises(ValueError, match=r"b\.parquet: not a readable Parquet file") as error:
        load(tmp_path / "b.parquet")
    assert "\n" not in str(error.value)
    FRAME.with_columns(pl.lit(datetime.date(2024, 1, 1)).alias("day")).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"d\.csv: not UTF-8 text: save it as UTF-8"):
        load(tmp_path / "d.csv")
    with pytest.raises(ValueError, match="column 'day': a label of type Date"):
        load(tmp_path / "c.parquet", label="day")


@pytest.mark.parametrize(("name", "shape", "classes"), [("breast-cancer", (569, 30), 2), ("wine", (178, 13), 3)])
def test_embedded_tables(name, shape, classes) -> None:
    data = load(name)
    assert tuple(data.split("all").x.shape) == shape
    assert len(data.spec.classes) == classes


def test_diabetes_is_in_its_own_units() -> None:
    data = load("diabetes")
    assert data.spec.event_shape == (11,)
    assert data.spec.columns[0].type == "integer"  # age in years
    assert data.split("all").x[0, 0] == 59


def test_blank_lines_at_the_end_and_unsigned_columns(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "1,0.5\n" * 12 + "\n\n")
    assert len(load(tmp_path / "a.csv").split("all")) == 12
    frame = pl.DataFrame({"a": pl.Series([1, 2] * 6, dtype=pl.UInt64), "b": [2**40, 0] * 6})
    frame.write_parquet(tmp_path / "b.parquet")
    assert [c.type for c in load(tmp_path / "b.parquet").spec.columns] == ["integer", "numeric"]
