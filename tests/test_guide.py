"""Every formula of the notes is in the guide, in both languages, with code that computes it and a check of it."""

import re
from pathlib import Path

import pytest
import yaml

import loglik.verification.statements  # noqa: F401  fills the registry
from helpers.definitions import defines
from loglik.report.mathml import mathml
from loglik.verification import CHECKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LISTS = sorted(DOCS.glob("*/*.yml"))
ENTRIES = [
    pytest.param(path.with_suffix(""), entry, id=f"{path.stem}-{number}")
    for path in LISTS
    for number, entry in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")))
]
PAGES = sorted(path for folder in ("notes", "exam") for path in (DOCS / folder).glob("*.md"))
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(("page", "entry"), ENTRIES)
def test_a_formula_is_in_both_languages_and_is_computed_and_covered(page, entry):
    for suffix in (".md", ".zh.md"):
        text = squeezed(page.with_suffix(suffix).read_text(encoding="utf-8"))
        assert squeezed(entry["formula"]) in text, f"{page.name}{suffix} has no {entry['formula']}"
    assert defines(entry["symbol"]), entry["symbol"]
    assert entry["covered"]
    for place in entry["covered"]:
        assert defines(place) if "::" in place else place in CHECKS, f"{place} is neither a test nor a check"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_every_formula_is_understood(page):
    text = re.sub(r"```.*?```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block, inline in FORMULA.findall(text):
        found = mathml(block or inline)
        assert not re.search(r"<m(text|i|o)>\\[a-z]", found), block or inline


@pytest.mark.parametrize("page", [p for p in PAGES if not p.name.endswith(".zh.md")], ids=lambda path: path.stem)
def test_both_languages_have_the_same_formulas_and_directives(page):
    english, chinese = (p.read_text(encoding="utf-8") for p in (page, page.with_suffix(".zh.md")))

    def displayed(text: str) -> list[str]:
        return [squeezed(block) for block, _ in FORMULA.findall(text) if block]

    assert displayed(english) == displayed(chinese)
    directives = re.compile(r"^\[\[.+?\]\]$", re.MULTILINE)
    assert directives.findall(english) == directives.findall(chinese)


def test_directives_name_what_exists():
    for page in PAGES:
        for kind, what in re.findall(r"^\[\[(\w+) (.+?)\]\]$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if kind == "source":
                assert defines(what), f"{page.name}: {what}"
            elif kind == "picture":
                assert (DOCS / "pictures" / f"{what}.py").is_file(), f"{page.name}: {what}"
            else:
                assert kind == "verify" and what in CHECKS, f"{page.name}: {what}"
