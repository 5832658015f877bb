"""Tables on disk: every format says the same, and what could be read in two ways is refused in one line."""

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from helpers.commands import run
from loglik.data import TableSettings, load

RNG = np.random.default_rng(0)
N = 60
FRAME = pl.DataFrame(
    {
        "size": RNG.normal(size=N).round(3),
        "count": RNG.integers(0, 9, N),
        "town": RNG.choice(["Ulm", "Bonn"], N),
        "member": RNG.choice([True, False], N),
    }
)


def write(path: Path, frame: pl.DataFrame = FRAME) -> Path:
    kind, _, packing = path.name.partition(".")[2].partition(".")
    lines = frame.write_csv()
    records = frame.write_json()
    if kind == "csv":
        text = lines
    elif kind == "json":
        text = records
    else:
        text = "".join(json.dumps(row) + "\n" for row in frame.to_dicts())
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind in ("feather", "ipc"):
        frame.write_ipc(path, compression="lz4")
    elif kind == "arrow":
        frame.write_ipc_stream(path)
    elif packing:
        path.write_bytes({"gz": gzip, "bz2": bz2}[packing].compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    "kind",
    ["csv.gz", "csv.bz2", "json", "json.gz", "jsonl", "ndjson", "jsonl.gz", "parquet", "feather", "ipc", "arrow"],
)
def test_formats_say_the_same(kind, tmp_path) -> None:
    plain = load(write(tmp_path / "people.csv"), label="town")
    data = load(write(tmp_path / f"people.{kind}"), label="town")
    assert data.name == "people"
    assert data.spec == plain.spec
    assert torch.equal(data.test.x, plain.test.x) and torch.equal(data.test.y, plain.test.y)
    again = load(tmp_path / f"people.{kind}", like=plain.spec).split("all")
    assert torch.equal(again.x, plain.split("all").x)


@pytest.mark.parametrize("name", ["[1", "a[1]b", "x*y"])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "json", "jsonl", "parquet", "feather", "arrow"])
def test_names_are_not_patterns(kind, name, tmp_path) -> None:
    folder = tmp_path / f"of {name}"
    folder.mkdir()
    write(folder / f"{name.replace('*', '-')}.{kind}", FRAME.head(3))  # which `*` would match
    assert load(write(folder / f"{name}.{kind}")).spec == load(write(tmp_path / f"plain.{kind}")).spec
    assert len(load(folder / f"{name}.{kind}").split("all")) == N


def test_zstandard(tmp_path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x20"  # one raw block of at most 255 bytes, RFC 8878
    text = b"a,b\n" + b"1,0.5\n2,1.5\n" * 10
    block = (len(text) << 3 | 1).to_bytes(3, "little")
    (tmp_path / "[a].csv.zst").write_bytes(frame + bytes([len(text)]) + block + text)
    assert load(tmp_path / "[a].csv.zst").split("all").x[:2].tolist() == [[1, 0.5], [2, 1.5]]


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl", "feather"])
def test_every_command_reads_them(kind, tmp_path, own_folder) -> None:
    table = write(Path(f"people.{kind}"))
    assert run("fit", table, "--model", "vae", "--max-steps", 2, "--set", "width=8", "--out", "vae")[0] == 0
    status, out, err = run("evaluate", "vae", table, "--per-row", "scores.csv")
    assert (status, err) == (0, "") and out.startswith(f"{N} examples")
    assert run("encode", "vae", table)[1].startswith(f"{N} rows of latents")
    gaps = write(
        Path(f"gaps.{kind}"), FRAME.with_columns(pl.when(pl.int_range(N) > 2).then("size"), pl.exclude("size"))
    )
    assert run("fill", "vae", gaps, "--out", "filled.csv")[1].startswith("3 missing values filled")
    assert pl.read_csv("filled.csv")["town"].to_list() == FRAME["town"].to_list()
    assert run("compare", table, "--models", "independent", "--out", "both")[0] == 0


def test_decimal_commas(tmp_path) -> None:
    frame = FRAME.with_columns(half=pl.col("count") / 2)
    frame.write_csv(tmp_path / "points.csv")
    frame.write_csv(tmp_path / "commas.csv", separator=";", decimal_comma=True)
    points, commas = load(tmp_path / "points.csv"), load(tmp_path / "commas.csv")
    assert commas.spec == points.spec and torch.equal(commas.test.x, points.test.x)
    (tmp_path / "few.csv").write_text("half;size;count;town;member\n1,5;-0,25;3;Ulm;true\n;2,5;3;Ulm;true\n")
    few = load(tmp_path / "few.csv", like=points.spec).split("all").x
    assert few[:, 0].tolist() == [-0.25, 2.5] and few[0, 4] == 1.5 and few[1, 4].isnan()
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'half': the value is missing"):
        load(tmp_path / "few.csv", like=points.spec, table=TableSettings(missing="refuse"))
    run_ = loglik.fit("independent", points)
    from loglik.tasks import fill_table

    assert fill_table(run_, tmp_path / "few.csv", tmp_path / "out.csv") == 1
    assert pl.read_csv(tmp_path / "out.csv")["size"].to_list() == [-0.25, 2.5]


def rows(*values: str, end: str = "\n") -> str:
    return "".join(f"{value}{end}" for value in values * 12)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "a;b\n" + rows("1,234;2"), "column 'a': '1,234' has a decimal comma or a separator of thousands"),
        (
            "a.csv",
            "a;b\n" + rows("1,5;2", "1,234.5;2"),
            "column 'a' has numbers written as '1,(5|234.5)', and others in",
        ),
        ("a.csv", "1,5;2,25\n" + rows("1,5;2,25"), "line 1 holds numbers: give the columns' names there"),
        ("a.csv.gz", "a,b\n1,2\n", r"a\.csv\.gz: not a readable CSV file \(Not a gzipped file"),
        ("a.json", '{"a": 1}', r"not a list of records, \[\{...\}, ...\]: name a file with one record a line .jsonl"),
        ("a.json", "[1, 2]", "not a list of records"),
        ("a.json", '[{"a": 1}, ', r"a\.json: not a readable JSON file \("),
        (
            "a.json",
            '[{"a": {"b": 1}}]',
            r"no column can be modelled \(a: it holds Struct.*, which is no number, text, boolean",
        ),
        ("a.jsonl", '{"a": [1, 2]}\n', r"no column can be modelled \(a: it holds List"),
        ("a.jsonl", '{"a": 1}\nnonsense\n', r"a\.jsonl: not a readable JSON lines file \("),
        ("a.jsonl", '{"a": 1, "b": 2}\n{"a": 1}\n', "row 2, column 'b': the value is missing"),
        ("a.arrow", "nonsense", r"a\.arrow: not a readable Arrow file \("),
        ("a.feather", "", r"a\.feather: not a readable Arrow file \("),
    ],
)
def test_errors(name, text, words, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load(tmp_path / name, table=TableSettings(missing="refuse"))
    assert "\n" not in str(error.value)


def test_a_folder_of_tables_is_no_text(tmp_path) -> None:
    write(tmp_path / "people.csv")
    write(tmp_path / "people.jsonl")
    with pytest.raises(ValueError, match=r"a folder of tables: give one file, as .*people\.csv"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("to be or not to be, that is the question " * 200)
    assert load(tmp_path).spec.kind == "text"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_label_is_a_class_and_no_amount(kind, tmp_path) -> None:
    def table(name: str, values: object) -> Path:
        return write(tmp_path / f"{name}.{kind}", FRAME.with_columns(y=pl.Series(values)))

    for values in ([0.0, 1.0] * 30, [1, 2, 3] * 20, [1.0, 2.0, 3.0] * 20):
        classes = load(table("classes", values), label="y").spec.classes
        assert classes == tuple(str(int(v)) for v in sorted(set(values)))
    with pytest.raises(
        ValueError, match=r"the label 0\.1 is not an integer, so it names no class: leave the label out"
    ):
        load(table("amounts", np.arange(1, N + 1) / 10), label="y")
    for many in (np.arange(N) % 25, (np.arange(N) % 25).astype(float), [f"{i % 25},5" for i in range(N)]):
        with pytest.raises(ValueError, match="25 distinct labels in 60 rows are too many for classes: group them"):
            load(table("many", many), label="y")
    assert len(load(table("words", [f"c{i % 25}" for i in range(N)]), label="y").spec.classes) == 25
    with pytest.raises(ValueError, match="25 distinct labels in 60 rows are too many"):
        loglik.fit("classifier", (np.zeros((N, 2)), (np.arange(N) % 25).astype(float)))
