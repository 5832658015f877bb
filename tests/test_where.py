"""docs/where.md names files that exist, and definitions that are in them."""

import importlib
import operator
import re
from pathlib import Path

import pytest

from helpers.definitions import defines

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "where.md").read_text(encoding="utf-8").splitlines()
HEADER = ["statement", "file", "symbol"]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("|")]
ENTRIES = [row for row in ROWS if row != HEADER and set(row) != {"---"}]
PAIRS = sorted({(file.strip("`"), symbol.strip("`")) for _, file, symbol in ENTRIES})
SHOWN = re.findall(r"`((?:tests|examples)/\S+)::(\w+)`", "\n".join(LINES))


def test_there_are_entries_in_every_table():
    assert len(ENTRIES) >= 40
    assert ROWS.count(HEADER) == 13
    assert all(all(row) for row in ENTRIES)


@pytest.mark.parametrize(("file", "symbol"), PAIRS)
def test_the_symbol_is_defined_in_its_file(file, symbol):
    assert file.startswith("src/loglik/")
    assert defines(f"{file}::{symbol}"), f"{file} defines no {symbol}"
    module = importlib.import_module(file.removeprefix("src/").removesuffix(".py").replace("/", "."))
    assert Path(module.__file__).as_posix().endswith(file)
    assert operator.attrgetter(symbol)(module) is not None


@pytest.mark.parametrize(("file", "symbol"), SHOWN)
def test_what_shows_a_statement_exists(file, symbol):
    assert defines(f"{file}::{symbol}"), f"{file} defines no {symbol}"


def test_every_path_exists():
    paths = re.findall(r"[\w./-]+\.(?:py|md|txt|png)\b", "\n".join(LINES))
    assert len(paths) > len(ENTRIES)
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_formulas_are_closed():
    """GitHub shows neither a formula with an odd dollar nor a table's row with a bar in a formula."""
    for line in LINES:
        assert line.isprintable(), line  # a lost backslash leaves a control character
        assert line.count("$") % 2 == 0 and line.count("{") == line.count("}") and line.count("`") % 2 == 0, line


def test_an_import_or_a_missing_name_is_no_definition():
    assert not defines("src/loglik/diffusion/likelihood.py::SPACINGS")
    assert defines("src/loglik/diffusion/time_grid.py::SPACINGS")
    assert not defines("src/loglik/vae/ladder.py::LadderVAE.loss")
