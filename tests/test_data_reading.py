"""What columns are read as: gaps, dates, forms of numbers, unseen categories; and back into a table."""

import datetime
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from helpers.commands import run
from loglik.data import Column, DataSpec, TableSettings, describe, load
from loglik.data.decode import decode, write_table
from loglik.data.moments import Form, parse_text

N = 60
DAYS = [datetime.date(2024, 1, 28) + datetime.timedelta(days=i) for i in range(N)]
MOMENTS = [datetime.datetime(2024, 3, 1, 12) + datetime.timedelta(minutes=90 * i) for i in range(N)]
GAPPY = pl.DataFrame(
    {
        "day": DAYS,
        "at": MOMENTS,
        "clock": [datetime.time(i % 24, 15 * (i % 4)) for i in range(N)],
        "lasts": [datetime.timedelta(seconds=i * i) for i in range(N)],
        "count": [None if i % 7 == 0 else i for i in range(N)],
        "price": [None if i % 11 == 0 else i / 4 for i in range(N)],
        "town": [None if i % 13 == 0 else ["Ulm", "Bonn"][i % 2] for i in range(N)],
        "member": [None if i % 17 == 0 else i % 3 == 0 for i in range(N)],
    }
)


def csv(tmp_path, text: str, name: str = "a.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def lines(*values: str) -> str:
    return "".join(f"{value}\n" for value in values)


def test_gaps_and_moments_in_a_typed_table(tmp_path) -> None:
    GAPPY.write_parquet(tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    columns = {c.name: c for c in data.spec.columns}
    assert [(c.type, c.temporal, c.unit, c.origin) for c in data.spec.columns[:4]] == [
        ("integer", "date", "1d", "2024-01-28"),
        ("integer", "datetime", "1m", "2024-03-01T12:00:00"),
        ("integer", "time", "1m", ""),
        ("integer", "duration", "1s", ""),
    ]
    assert [c.name for c in data.spec.columns if c.missing] == ["count", "price", "town", "member"]
    assert columns["count"].type == "integer" and columns["price"].decimals == 2 and data.spec.incomplete
    x = data.split("all").x
    assert x.isnan().sum(0).tolist() == [0, 0, 0, 0, 9, 6, 5, 4]
    assert x[2, :4].tolist() == [2, 180, 150, 4]
    assert decode(x, data.spec.columns).equals(GAPPY)
    assert "4 with missing values, which are modelled (missing=model)" in data.describe()
    assert DataSpec.from_dict(data.spec.to_dict()) == data.spec


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet", "feather"])
def test_a_table_that_is_written_is_read_again(ending, tmp_path) -> None:
    path = tmp_path / f"a.{ending}"
    write_table([GAPPY[:40], GAPPY[40:]], path)
    data = load(path)
    assert decode(data.split("all").x, data.spec.columns).equals(GAPPY)
    again = load(path, like=data.spec).split("all").x
    assert torch.equal(again.nan_to_num(-1), data.split("all").x.nan_to_num(-1))


def test_gaps_are_refused_or_have_indicators(tmp_path) -> None:
    path = csv(tmp_path, "a,b,c\n" + lines(",,", "1,x,0.5", ",y,1.5", "3,NA,2.5") * 4)
    with pytest.raises(ValueError, match=r"row 1 \(line 2\), column 'a': the value is missing, and missing=\"refuse\""):
        load(path, table=TableSettings(missing="refuse"))
    data = load(path, table=TableSettings(missing="indicator"))
    names = ["a", "a is missing", "b", "b is missing", "c", "c is missing"]
    assert [c.name for c in data.spec.columns] == names and data.spec.columns[1].indicates == "a"
    x = data.split("all").x
    assert x[:, 1].tolist() == [1, 0, 1, 0] * 4 and x[:4, 0].isnan().tolist() == [True, False, True, False]
    assert decode(x, data.spec.columns)["a"].to_list() == [None, 1, None, 3] * 4
    assert load(path).notes == ("4 rows without any value: log p of nothing is 0",)
    complete = load(csv(tmp_path, "a,b,c\n" + lines("1,x,0.5", "2,y,1.5", "3,x,2.5") * 4, "b.csv"))
    assert load(path, like=complete.spec).split("all").x[2, 0].isnan()
    with pytest.raises(ValueError, match="two columns would be named 'a is missing'"):
        load(csv(tmp_path, "a,a is missing\n1,2\n,3\n", "c.csv"), table=TableSettings(missing="indicator"))


@pytest.mark.parametrize(
    ("values", "temporal", "unit", "first"),
    [
        (["2024-02-01", "2024-01-30"], "date", "1d", datetime.date(2024, 2, 1)),
        (["31.12.2023", "01.02.2024"], "date", "1d", datetime.date(2023, 12, 31)),
        (["12/31/2023", "01/02/2024"], "date", "1d", datetime.date(2023, 12, 31)),
        (["3 Feb 2024", "14 Mar 2024"], "date", "1d", datetime.date(2024, 2, 3)),
        (["2024-02-01 10:00", "2024-02-01T12:30"], "datetime", "1m", datetime.datetime(2024, 2, 1, 10)),
        (["31/12/2023 10:00:05", "01/02/2024 00:00:00"], "datetime", "1s", datetime.datetime(2023, 12, 31, 10, 0, 5)),
        (["13:30", "02:05"], "time", "1m", datetime.time(13, 30)),
        (["PT2S", "PT0.5S"], "duration", "1ms", datetime.timedelta(seconds=2)),
        (["1 days 02:00:00", "-1 days 00:00:00"], "duration", "1h", datetime.timedelta(hours=26)),
    ],
)
def test_dates_in_texts(values, temporal, unit, first, tmp_path) -> None:
    spec = load(csv(tmp_path, "t,k\n" + lines(*(f"{v},1" for v in values)) * 8)).spec
    assert (spec.columns[0].temporal, spec.columns[0].unit) == (temporal, unit)
    x = load(tmp_path / "a.csv", like=spec).split("all").x
    assert decode(x, spec.columns)["t"][0] == first


def test_zones_are_instants(tmp_path) -> None:
    data = load(csv(tmp_path, "t\n" + lines("2024-02-01T10:00:00Z", "2024-02-01T10:00:00+02:00") * 6))
    column = data.spec.columns[0]
    assert (column.zone, column.unit, column.origin) == ("UTC", "1h", "2024-02-01T08:00:00")
    assert data.split("all").x[:2, 0].tolist() == [2, 0]
    moments = pl.Series("t", MOMENTS).dt.replace_time_zone("Europe/Paris")
    paris = loglik.data.as_data(pl.DataFrame({"t": moments}))
    assert decode(paris.split("all").x, paris.spec.columns)["t"].equals(moments)
    with pytest.raises(ValueError, match=r"the values are Datetime.*and the model's are datetime with a time zone"):
        loglik.data.as_data(pl.DataFrame({"t": MOMENTS}), like=paris.spec)


def test_moments_too_many_for_integers_are_real(tmp_path) -> None:
    seconds = np.random.default_rng(0).integers(0, 3 * 10**8, 200)
    moments = [datetime.datetime(2010, 1, 1) + datetime.timedelta(seconds=int(s)) for s in seconds]
    data = loglik.data.as_data({"t": moments})
    column = data.spec.columns[0]
    assert (column.type, column.unit) == ("numeric", "1d")
    assert data.notes == ("column 't': real numbers in 1d, read to 11 s: too many 1s for integers",)
    back = decode(data.split("all").x, data.spec.columns)["t"]
    assert (back - pl.Series(moments)).abs().max() <= datetime.timedelta(seconds=11)


def test_durations_parse_by_their_sign() -> None:
    texts = pl.Series(["-PT1H", "P2D", "-1 days 01:00:00", "nonsense"])
    assert parse_text(texts, Form("duration")).to_list() == [-3_600 * 10**6, 172_800 * 10**6, -82_800 * 10**6, None]


def test_ambiguous_dates_are_left_out_until_the_form_is_known(tmp_path) -> None:
    path = csv(tmp_path, "t,k\n" + lines("01/02/2024,1", "05/03/2024,2") * 6)
    data = load(path)
    assert data.spec.left_out[0][0] == "t" and "may be %d/%m/%Y or %m/%d/%Y" in data.spec.left_out[0][1]
    data = load(path, table=TableSettings(columns={"t": "%d/%m/%Y"}))
    assert data.spec.columns[0].origin == "2024-02-01" and data.spec.columns[0].written == "%d/%m/%Y"
    assert load(path, like=data.spec).split("all").x[:2, 0].tolist() == [0, 33]
    iso = csv(tmp_path, "t,k\n2024-02-02,1\n", "iso.csv")
    assert load(iso, like=data.spec).split("all").x[0, 0] == 1


@pytest.mark.parametrize(
    ("values", "form", "numbers"),
    [
        (["1,5", "2"], "a decimal comma", [1.5, 2]),
        (["1.234,5", "0,5"], "a decimal comma", [1234.5, 0.5]),
        (["1,234.5", "-12"], "commas between thousands", [1234.5, -12]),
        (["1,234,567", "1"], "commas between thousands", [1234567, 1]),
        (["1'234.5", "2"], "blanks or apostrophes between thousands", [1234.5, 2]),
        (["1 234,5", "2"], "blanks or apostrophes between thousands", [1234.5, 2]),
    ],
)
def test_forms_of_numbers(values, form, numbers, tmp_path) -> None:
    data = load(csv(tmp_path, "a;b\n" + lines(*(f"{v};0.25" for v in values)) * 6))
    assert data.split("all").x[:2, 0].tolist() == numbers
    assert data.notes == (f"column 'a': numbers with {form}, as {values[0]!r}",)
    assert load(tmp_path / "a.csv", like=data.spec).split("all").x[:2, 0].tolist() == numbers


def test_other_columns_tell_the_decimal_mark(tmp_path) -> None:
    path = csv(tmp_path, "a;b\n" + lines("1,234;0.5") * 12)
    assert load(path).split("all").x[0].tolist() == [1234, 0.5]
    path = csv(tmp_path, "a;b\n" + lines("1,234;0,5") * 12)
    assert load(path).split("all").x[0].tolist() == pytest.approx([1.234, 0.5])


def test_words_for_missing_numbers_ids_and_codes(tmp_path) -> None:
    rows = [f"{'?' if i == 3 else i},user {i},{i % 2 + 7:04},{['yes', 'No'][i % 2]},{i % 5}.0" for i in range(40)]
    data = load(csv(tmp_path, "n,id,zip,ok,real\n" + lines(*rows)))
    assert [(c.name, c.type, c.missing) for c in data.spec.columns] == [
        ("n", "integer", True),
        ("zip", "integer", False),
        ("ok", "boolean", False),
        ("real", "numeric", False),
    ]
    assert data.spec.columns[2].categories == ("No", "yes")
    assert data.spec.left_out == (("id", "it has 40 distinct texts in 40 values, too many for categories"),)
    assert "column 'n': '?' is read as missing (1)" in data.notes
    kinds = {"zip": "category", "id": "ignore", "n": "numeric", "ok": "category"}
    data = load(tmp_path / "a.csv", table=TableSettings(columns=kinds))
    assert [c.type for c in data.spec.columns] == ["numeric", "categorical", "categorical", "numeric"]
    assert data.spec.columns[1].categories == ("0007", "0008")
    for kinds, words in (
        ({"no": "ignore"}, "no column 'no' to read as requested; found n, id, zip, ok, real"),
        ({"ok": "integer"}, "column 'ok' is to be read as integer, but it holds 'yes', 'No'"),
        ({"n": "boolean"}, "'n' is to be read as boolean, but it holds 40 distinct values"),
        ({"n": "date"}, "column 'n' is to be read as date, but it holds '0', '1', '2'"),
    ):
        with pytest.raises(ValueError, match=words):
            load(tmp_path / "a.csv", table=TableSettings(columns=kinds))
    with pytest.raises(ValueError, match="column 'a' cannot be read as 'money': use category, integer"):
        TableSettings(columns={"a": "money"})


def test_five_thousand_categories(tmp_path) -> None:
    codes = np.random.default_rng(0).permutation(np.arange(50_000) % 5_000)
    data = loglik.data.as_data({"k": [f"c{i}" for i in codes], "x": codes})
    assert len(data.spec.columns[0].categories) == 5_000
    assert torch.equal(data.train.x[:, 0], data.train.x[:, 1])  # c0, c1, ... sort as numbers


def test_unseen_categories_and_changed_types(tmp_path) -> None:
    spec = load(csv(tmp_path, "k,n,t\n" + lines("a,1,2024-01-01", "b,2,2024-01-03") * 6)).spec
    other = csv(tmp_path, "k,n,t\na,1,2024-01-01\nnew,2,2024-01-09\n,2,2024-01-09\n", "b.csv")
    assert load(other, like=spec).split("all").x[:2].tolist() == [[0, 1, 0], [2, 2, 8]]
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'k': 'new' is none of the categories a, b"):
        load(other, like=spec, table=TableSettings(unseen="refuse"))
    for row, words in (
        ("a,one,2024-01-01", "column 'n': 'one' is not a number"),
        ("a,1,12:30", "column 't': '12:30' is not a date in one form for the whole column: write ISO 8601"),
        ("7,1,2024-01-01", "column 'k': the column holds numbers, as '7', and the model's holds a, b"),
        ("a,1.5,2024-01-01", "column 'n': 1.5 is not an integer"),
    ):
        with pytest.raises(ValueError, match=words):
            load(csv(tmp_path, f"k,n,t\n{row}\n{row}\n", "c.csv"), like=spec)


def test_types_that_are_left_out() -> None:
    frame = pl.DataFrame({"a": [[1], [2]] * 6, "b": [b"x", b"y"] * 6, "c": [None] * 12, "d": [1, 2] * 6})
    data = loglik.data.as_data(frame)
    assert [name for name, _ in data.spec.left_out] == ["a", "b", "c"] and len(data.spec.columns) == 1
    decimal = pl.DataFrame({"p": pl.Series(["1.25", "2.5"] * 6).cast(pl.Decimal(10, 2))})
    assert loglik.data.as_data(decimal).spec.columns[0].decimals == 2


def test_decode_of_categories_and_large_numbers() -> None:
    columns = (Column(name="k", type="categorical", categories=("a", "b")), Column(name="x", type="numeric"))
    rows = torch.tensor([[1.0, 1 / 3], [2.0, torch.nan], [torch.nan, 1e30]])
    assert decode(rows, columns).to_dict(as_series=False) == {"k": ["b", None, None], "x": [0.3333333, None, 1e30]}


def test_describe_and_the_commands(tmp_path, own_folder) -> None:
    GAPPY.select("day", "town", "count").write_csv("a.csv")
    status, out, err = run("describe", "a.csv", "--column", "count=numeric", "--json", "a.json")
    assert (status, err) == (0, "") and "date: integer, 1d since 2024-01-28" in out and "2024-03-27" in out
    plain = json.loads(Path("a.json").read_text())
    assert [(c["read_as"], c["missing"]) for c in plain["columns"]] == [
        ("date: integer, 1d since 2024-01-28", 0),
        ("categorical", 5),
        ("numeric", 9),
    ]
    assert describe("digits").facts[:2] == (("kind", "image"), ("shape", "1×8×8"))
    complete = GAPPY.select("day", "lasts", "at", k=pl.Series(["a", "b", "c"] * 20))
    complete.write_parquet("b.parquet")
    assert run("fit", "b.parquet", "--model", "independent", "--out", "run")[0] == 0
    for name in ("s.csv", "s.parquet", "s.feather", "s.json"):
        assert run("sample", "run", "-n", 5, "--out", name)[::2] == (0, "")
    assert pl.read_parquet("s.parquet").schema == complete.schema
    assert load("s.csv", like=load("b.parquet").spec).split("all").x.shape == (5, 4)
    assert "a table is" not in run("describe", "digits")[1]
    assert "--column needs NAME=KIND" in run("describe", "a.csv", "--column", "count")[2]
    assert "--missing must be one of model, refuse, indicator" in run("describe", "a.csv", "--missing", "no")[2]


def test_columns_that_are_read_alike_share_a_line(tmp_path: Path):
    rows = "1,5;2,5;0,5;7,25;3,5;02136\n" + "2,25;1,5;4,5;1,5;0,5;10001\n"
    (tmp_path / "a.csv").write_text("a;b;c;d;e;zip\n" + rows * 20)
    data = load(tmp_path / "a.csv")
    assert len(data.notes) == 6
    assert data.grouped_notes() == [
        "columns 'a', 'b', 'c', ... (5 in all): numbers with a decimal comma, as '1,5'",
        data.notes[-1],
    ]
