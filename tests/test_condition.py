"""Conditions as users write them, and what a run does with them."""

import csv
import datetime
import math

import pytest
import torch

import loglik
from helpers.mixed import mixed_rows, write_rows
from loglik.cli import main
from loglik.data.spec import Column, DataSpec
from loglik.tasks import conditions_of, evaluate_given, sample_given

inf = math.inf
COLUMNS = (
    Column(name="carat", type="numeric"),
    Column(name="a=b, or <", type="integer"),
    Column(name="cut", type="categorical", categories=("Fair", "Good|bad", "Very Good")),
    Column(name="sold", type="boolean", categories=("false", "true")),
    Column(name="day", type="integer", temporal="date", unit="1d", origin="2013-01-01"),
    Column(name="hour", type="integer", temporal="datetime", unit="1h", origin="2013-01-01T00:00:00"),
    Column(
        name="local", type="numeric", temporal="datetime", unit="1h", origin="2013-01-01T00:00:00", zone="Asia/Tokyo"
    ),
    Column(name="clock", type="integer", temporal="time", unit="1m"),
)
SPEC = DataSpec(kind="table", event_shape=(8,), columns=COLUMNS, label="y", left_out=(("note", "text"),))


@pytest.mark.parametrize(
    ("text", "value", "column", "intervals"),
    [
        ("carat=1.5", {"carat": 1.5}, 0, ((1.5, 1.5),)),
        ("carat = 1..2", {"carat": (1, 2)}, 0, ((1, 2),)),
        ("carat<2", {"carat": (None, 2)}, 0, ((-inf, 2),)),
        ("carat=-1..|..-3", {"carat": "-1..|..-3"}, 0, ((-inf, -3), (-1, inf))),
        ("a=b, or <<5", {"a=b, or <": (None, 4)}, 1, ((-inf, 4),)),
        ("a=b, or <=5", {"a=b, or <": 5}, 1, ((5, 5),)),
        ("a=b, or <=1|2|7", {"a=b, or <": [7, 1, 2]}, 1, ((1, 2), (7, 7))),
        ("a=b, or <>2.5", {"a=b, or <": (2.5, None)}, 1, ((3, inf),)),
        ("cut=Good|bad", {"cut": "Good|bad"}, 2, ((1, 1),)),
        ("cut=Fair|Very Good", {"cut": ["Fair", "Very Good"]}, 2, ((0, 0), (2, 2))),
        ("sold=True", {"sold": True}, 3, ((1, 1),)),
        ("day=2013-02-01", {"day": datetime.date(2013, 2, 1)}, 4, ((31, 31),)),
        ("day=2013-02", {"day": "2013-02"}, 4, ((31, 58),)),
        ("day=2013-01-31..2013-02-02", {"day": (datetime.date(2013, 1, 31), "2013-02-02")}, 4, ((30, 32),)),
        ("day>2013-02", {"day": "2013-03-01.."}, 4, ((59, inf),)),
        ("hour=2013-01-02", {"hour": "2013-01-02"}, 5, ((24, 47),)),
        ("hour=2013-01-02T03:00", {"hour": datetime.datetime(2013, 1, 2, 3)}, 5, ((27, 27),)),
        ("local=2013-01-02", {"local": "2013-01-02"}, 6, ((15, 39),)),
        ("clock=08:30..09:00", {"clock": (datetime.time(8, 30), "9:00")}, 7, ((510, 540),)),
    ],
)
def test_conditions_are_read(text, value, column, intervals):
    for given in ([text], value):
        (found,) = conditions_of(given, SPEC)
        assert (found.column, found.intervals) == (column, intervals)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight=3", "no column 'weight'; the columns are carat"),
        ("note=x", r"no column 'note': it is not modelled \(text\)"),
        ("y=1", "column 'y' is the label: pass label="),
        ("carat", "a condition is COLUMN=VALUE, such as 'carat=1..2', got 'carat'"),
        ("carat=big", "column 'carat': 'big' is not a number"),
        ("carat=nan", "'nan' is not a finite number"),
        ("carat=2..1", "the range 2..1 is empty: its ends are swapped"),
        ("carat=1|2..3", "write values or ranges"),
        ("a=b, or <=1.5", "has integers: no row has 1.5"),
        ("a=b, or <=1.2..1.8", "the range has no integer in it"),
        ("cut=Ideal", r"no category 'Ideal'; they are Fair, Good\|bad, Very Good"),
        ("cut<Fair", r"column 'cut' has categories: write cut=A\|B"),
        ("day=today", "'today' is not a date: write 2013-07-04, 2013-07 or 2013"),
        ("clock=noon", "'noon' is not a time: write 08:30"),
    ],
)
def test_wrong_conditions_are_one_line(text, message):
    with pytest.raises(ValueError, match=message):
        conditions_of([text], SPEC)
    with pytest.raises(ValueError, match="two conditions on column 'carat'"):
        conditions_of(["carat<3", "carat>1"], SPEC)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    table = write_rows(folder / "table.csv", mixed_rows("big, or so"))
    options = {"label": "label", "progress": False, "max_steps": 5, "width": 16}
    return loglik.fit("flow", table, out=folder / "run", **options)


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["loglik", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_samples_of_a_run_meet_the_conditions(run, tmp_path, capsys, monkeypatch):
    number, integer, code = (column.name for column in run.spec.columns)
    given = ["--given", f"{integer}>=1", "--given", f"{code}=big, or so"]
    assert command(monkeypatch, "sample", run.path, "-n", 50, *given, "--out", tmp_path / "x.csv") == 0
    assert "conditions: " in capsys.readouterr().out
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50 and all(int(row[integer]) >= 1 and row[code] == "big, or so" for row in rows)
    x = loglik.sample(run, 20, given={number: 0.25})
    assert (x[:, 0] == 0.25).all() and len(x) == 20
    assert torch.equal(x, loglik.sample(run, 20, given={number: 0.25}))
    with pytest.raises(ValueError, match=f"no row meets the conditions, by the model.* samples have '{number}' from"):
        sample_given(run, 5, {number: 1e9})


def test_independent_columns_are_drawn_exactly_however_rare_the_range(tmp_path):
    rows = [["number", "integer", "code"]] + [[f"{i / 100:.2f}", str(i % 40), "abc"[i % 3]] for i in range(400)]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    plain = loglik.fit("independent", tmp_path / "table.csv", progress=False)
    given = {"number": (3.999, 4.001), "integer": (38, None), "code": ["a", "c"]}
    samples = sample_given(plain, 500, given)
    number, integer, code = samples.x.T
    assert samples.draws.effective > 499 and (code != 1).all() and (integer >= 38).all()
    assert ((number - 4).abs() < 0.00101).all() and number.std() > 1e-4
    draws = plain.density.sample(400_000)
    for name, low, high in (("number", 1.0, 1.7), ("integer", 3, 9), ("number", 3.99, inf)):
        d = [column.name for column in plain.spec.columns].index(name)
        p = plain.density.column(draws, d).probability(torch.tensor([low]), torch.tensor([high])).item()
        share = ((draws[:, d] >= low) & (draws[:, d] <= high)).double().mean().item()
        assert abs(p - share) < 4 * math.sqrt(p / 400_000)
    x = draws[:200]
    parts = [plain.density.column(x, d).log_prob(x[:, d]) for d in range(3)]
    assert torch.allclose(sum(parts), plain.density.log_prob(x), atol=1e-9)


def test_columns_are_scored_given_others(run, capsys, monkeypatch):
    number, _, code = (column.name for column in run.spec.columns)
    whole = evaluate_given(run, given=[], split="test")
    parts = [evaluate_given(run, given=g, of=o, split="test") for g, o in (([], [code]), ([code], None))]
    assert whole.of == tuple(column.name for column in run.spec.columns)
    assert abs(sum(part.nats for part in parts) - whole.nats) < 0.2  # the chain rule
    assert parts[0].bound == "estimate" and parts[0].effective > 30
    assert command(monkeypatch, "evaluate", run.path, "--given", code, "--of", number) == 0
    assert f"log p({number} | {code})" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is both scored and given"):
        evaluate_given(run, given=[code], of=[code])
    with pytest.raises(ValueError, match="all columns are given"):
        evaluate_given(run, given=[column.name for column in run.spec.columns])
