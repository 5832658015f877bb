"""Tables read in blocks into a store: the same spec, codes, splits and errors as in memory."""

import importlib
import re

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from loglik.data import TableSettings, incomplete, isolated, large_tables, load, profile
from loglik.data.dataset import Data
from loglik.data.store import Rows

tasks_fill = importlib.import_module("loglik.tasks.fill")  # `loglik.tasks.fill` is the function

REFUSE = TableSettings(missing="refuse", unseen="refuse")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Blocks of few rows, in this process, and a cache of the test's own."""
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))

    def blocks(path):
        yield from (piece for frame in isolated._scanned(path) for piece in frame.iter_slices(37))

    monkeypatch.setattr(large_tables, "blocks", blocks)
    monkeypatch.setattr(incomplete, "blocks", blocks)


def table(n: int = 400) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "x": generator.standard_normal(n),
            "late real": [float(i) if i < 300 else i + 0.5 for i in range(n)],
            "n": generator.poisson(4, n),
            "big": generator.integers(0, 2**40, n),
            "kind": np.array(["b", "a", "ü", "10", "9"])[generator.integers(0, 5, n)],
            "late text": [str(i % 7) if i < 390 else "x" for i in range(n)],
            "flag": generator.random(n) < 0.5,
            "y": np.array(["no", "yes", "maybe"])[generator.integers(0, 3, n)],
            "level": generator.integers(1, 4, n),
        }
    )


def both(path, monkeypatch, **options) -> tuple[Data, Data]:
    """Return the data read in memory, and from a store."""
    monkeypatch.delenv("LOGLIK_MAX_IN_MEMORY", raising=False)
    plain = load(path, **options)
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1")
    large = load(path, **options)
    assert isinstance(plain.train.x, torch.Tensor) and isinstance(large.train.x, Rows)
    return plain, large


def check_same(plain: Data, large: Data) -> None:
    assert plain.spec == large.spec and plain.name == large.name and plain.source == large.source
    for name in ("train", "validation", "test", "all"):
        a, b = plain.split(name), large.split(name)
        assert torch.equal(a.tensor(), b.tensor()) and torch.equal(a.index, b.index)
        assert (a.y is None and b.y is None) or torch.equal(a.y, b.y)


WRITERS = {
    "csv": pl.DataFrame.write_csv,
    "tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    "parquet": pl.DataFrame.write_parquet,
    "arrow": pl.DataFrame.write_ipc,
    "feather": pl.DataFrame.write_ipc_stream,
    "jsonl": pl.DataFrame.write_ndjson,
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("label", [None, "y", "level", "flag"])
def test_a_table_in_blocks_is_the_table_in_memory(tmp_path, monkeypatch, ending, label):
    path = tmp_path / f"a.{ending}"
    WRITERS[ending](table(), path)
    plain, large = both(path, monkeypatch, label=label, seed=3)
    check_same(plain, large)
    check_same(*both(path, monkeypatch, like=plain.spec, seed=3))  # as `evaluate RUN` reads it, from the same store
    assert len(list((tmp_path / "cache" / "data").glob("*/header.json"))) == 1
    part = tmp_path / f"part.{ending}"
    WRITERS[ending](table().head(123), part)
    check_same(*both(part, monkeypatch, like=plain.spec))


def test_a_child_process_reads_the_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(large_tables, "blocks", isolated.blocks)
    path = tmp_path / "a.parquet"
    table().write_parquet(path)
    check_same(*both(path, monkeypatch, label="y"))


def test_decimal_commas_and_blank_lines(tmp_path, monkeypatch):
    lines = [f"{i},{i % 10};{i};a" for i in range(90)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["x;n;kind", *lines, ";;", ";;", ""]))
    plain, large = both(path, monkeypatch)
    check_same(plain, large)
    check_same(*both(path, monkeypatch, like=plain.spec))
    assert [column.type for column in large.spec.columns] == ["numeric", "integer", "categorical"]


def test_numbers_before_texts_are_categories_too(tmp_path, monkeypatch):
    """Distinct texts are kept for columns of numbers only up to a limit; beyond it, the table is read once more."""
    monkeypatch.setattr(profile, "KEPT", 10)
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["a,b", *(f"{i % 50 if i < 300 else 'word'},{i}" for i in range(400))]))
    plain, large = both(path, monkeypatch)
    check_same(plain, large)
    assert len(large.spec.columns[0].categories) == 51


def test_texts_with_a_label_are_read_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,y", *(f"the text {i},{'ab'[i % 2]}" for i in range(100))]))
    plain = load(path, label="y")
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1")
    large = load(path, label="y")
    assert plain.spec == large.spec and torch.equal(plain.train.x, large.train.x)


def test_gaps_dates_and_forms_in_blocks_are_those_in_memory(tmp_path, monkeypatch):
    lines = [
        f"{i if i % 9 else '?'};{1000 + i},5;{1 + i % 28:02}.0{1 + i // 28}.2024;id {i};{'ab'[i % 2] if i % 7 else ''}"
        for i in range(200)
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["n;amount;day;id;k", *lines[:150], ";;;;", *lines[150:]]))
    for missing in ("model", "indicator"):
        table = TableSettings(missing=missing, columns={"n": "numeric"})
        plain, large = both(path, monkeypatch, table=table)
        assert plain.spec == large.spec and plain.notes == large.notes and plain.spec.left_out
        for one, two in ((plain, large), both(path, monkeypatch, like=plain.spec)):
            x, y = one.split("all").tensor(), two.split("all").tensor()
            assert torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) and x.isnan().any()
    assert [c.name for c in plain.spec.columns if c.indicates] == [
        f"{c} is missing" for c in ("n", "amount", "day", "k")
    ]
    assert plain.spec.columns[4].written == "%d.%m.%Y"


ROWS = [f"{i},{'ab'[i % 2]},{i % 3}" for i in range(100)]


@pytest.mark.parametrize(
    "lines",
    [
        ["x,k,n", *ROWS[:70], "1,,2", *ROWS[70:]],
        ["x,k,n", *ROWS[:70], "1,a,2,3", *ROWS[70:]],
        ["x,k,n", *ROWS[:95], "one,a,2", *ROWS[95:]],
        ["k,x", *(f"id {i},name {i}" for i in range(100))],
        ["x,k,n"],
        ["x,k,n", *ROWS[:50], ",,", *ROWS[50:]],
        ["1,2,3", *ROWS],
        ["x,x,n", *ROWS],
        ["x,k,n", *(f"{i},a,{'-nan' if i == 60 else i}" for i in range(100))],
        ["x;k;n", *(f"1,{100 + i};a;1" for i in range(100))],
        ["x;k;n", *(f"1,{i};a;1.5" for i in range(100)), "1,234.5;a;1.5"],
    ],
)
@pytest.mark.parametrize("label", [None, "k", "no"])
def test_errors_are_those_of_a_table_in_memory(tmp_path, monkeypatch, lines, label):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.delenv("LOGLIK_MAX_IN_MEMORY", raising=False)
    with pytest.raises(ValueError, match=r"a\.csv") as plain:
        load(path, label=label, table=REFUSE)
    monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1")
    with pytest.raises(ValueError, match=re.escape(str(plain.value))):
        load(path, label=label, table=REFUSE)


def test_errors_of_a_model_s_table(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    table().write_parquet(path)
    spec = load(path, label="y").spec
    for name, change in {
        "absent": table().drop("n"),
        "category": table().with_columns(kind=pl.Series([*["a"] * 399, "new"])),
        "label": table().with_columns(y=pl.Series([*["no"] * 399, "never"])),
        "real": table().with_columns(n=pl.Series([1.0] * 300 + [0.5] * 100)),
    }.items():
        other = tmp_path / f"{name}.parquet"
        change.write_parquet(other)
        monkeypatch.delenv("LOGLIK_MAX_IN_MEMORY", raising=False)
        with pytest.raises(ValueError, match=name) as plain:
            load(other, like=spec, table=REFUSE)
        monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", "1")
        with pytest.raises(ValueError, match=re.escape(str(plain.value))):
            load(other, like=spec, table=REFUSE)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_filling_in_blocks_draws_what_filling_in_memory_draws(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(tasks_fill, "BLOCK", 50)
    whole, gaps = tmp_path / f"whole.{ending}", tmp_path / f"gaps.{ending}"
    frame = table().select("x", "n", "kind", "flag")
    WRITERS[ending](frame, whole)
    mask = np.random.default_rng(1).random(400) < 0.2
    hidden = pl.Series(mask)
    holes = frame.with_columns(n=frame["n"].set(hidden, None), kind=frame["kind"].set(hidden, None))
    WRITERS[ending](holes, gaps)
    run = loglik.fit("independent", str(whole), seed=0)
    texts = []
    for limit in ("1GiB", "1"):
        monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", limit)
        out = tmp_path / f"{limit}.csv"
        assert tasks_fill.fill_table(run, gaps, out, seed=5) == 2 * int(mask.sum())
        texts.append(out.read_text())
    assert texts[0] == texts[1]
    (tmp_path / "bad.csv").write_text("\n".join(["x,n,kind,flag", *["1,2,a,true"] * 99, "1,2,new,true"]))
    with pytest.raises(ValueError, match=r"row 100, column 'kind': 'new' is none of the categories"):
        tasks_fill.fill_table(run, tmp_path / "bad.csv", tmp_path / "no.csv")
    (tmp_path / "bad.csv").write_text("x,n,kind,flag\n")
    with pytest.raises(ValueError, match="no rows"):
        tasks_fill.fill_table(run, tmp_path / "bad.csv", tmp_path / "no.csv")


def test_a_run_from_a_store_is_the_run_from_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    table().write_parquet(path)
    found = []
    for limit in ("1GiB", "1"):
        monkeypatch.setenv("LOGLIK_MAX_IN_MEMORY", limit)
        run = loglik.fit("vae", str(path), label="y", conditional=True, max_steps=5, seed=0, out=tmp_path / limit)
        assert isinstance(run.data_for().train.x, Rows) == (limit == "1")
        result = loglik.evaluate(run, per_row=tmp_path / f"{limit}.rows.csv")
        found.append((run.density.state_dict(), result.nats, (tmp_path / f"{limit}.rows.csv").read_bytes()))
    (one, nats, rows), (other, other_nats, other_rows) = found
    assert all(torch.equal(one[name], other[name]) for name in one) and nats == other_nats and rows == other_rows
