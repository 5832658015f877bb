"""The tutorials run as plain Python, with few steps, and have the same prose cells in both languages."""

import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from loglik.report.mathml import mathml
from loglik.verification import CHECKS

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
SOURCES = sorted(TUTORIALS.glob("*.py"))
TINY = {"STEPS": 4, "DRAWS": 2, "LINES": 1000}
CELL = re.compile(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)


def prose(source: Path, language: str) -> list[str]:
    """Return the Markdown cells of a language."""
    cells = CELL.findall(source.read_text(encoding="utf-8"))
    chosen = [text for head, text in cells if "[markdown]" in head and ('tags=["zh"]' in head) == (language == "zh")]
    return [re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() for text in chosen]


def displayed(cell: str) -> list[str]:
    return [block for block, _ in FORMULA.findall(cell) if block]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_tutorial_runs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    checks = dict(CHECKS)
    code = source.read_text(encoding="utf-8")
    for name, value in TINY.items():
        code = re.sub(rf"^{name} = [\d_]+", f"{name} = {value}", code, flags=re.MULTILINE)
    assert "\nSTEPS = 4 " in code
    try:
        with torch.random.fork_rng(devices=[]), matplotlib.rc_context({"backend": "agg"}):
            exec(compile(code, str(source), "exec"), {})
    finally:
        plt.close("all")
        CHECKS.clear()
        CHECKS.update(checks)
    assert capsys.readouterr().out


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_both_languages_say_the_same(source):
    english, chinese = prose(source, "en"), prose(source, "zh")
    assert len(english) == len(chinese) > 0
    for one, other in zip(english, chinese, strict=True):
        assert re.findall(r"^#+(?= )", one, re.MULTILINE) == re.findall(r"^#+(?= )", other, re.MULTILINE)
        assert displayed(one) == displayed(other)
        for block, inline in FORMULA.findall(one + "\n" + other):
            assert not re.search(r"<m(text|i|o)>\\[a-z]", mathml(block or inline)), block or inline


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_figures_have_captions_in_both_languages(source):
    for head, text in CELL.findall(source.read_text(encoding="utf-8")):
        draws = "[markdown]" not in head and re.search(r"^(plt\.show|show)\(", text, re.MULTILINE)
        assert bool(draws) == (' en="' in head and ' zh="' in head), text


def test_each_tutorial_has_a_page_in_both_languages():
    assert [source.stem for source in SOURCES] == ["composing", "images", "own_model", "tables", "text"]
    for source in SOURCES:
        for suffix in (".md", ".zh.md"):
            assert source.with_suffix(suffix).read_text(encoding="utf-8") == f"[[tutorial {source.stem}]]\n"
