"""Links between the pages resolve, and each decision has a date and its three parts."""

import re
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
PARTS = ["Context", "Decision", "Consequence"]
DATE = r"\d{4}-\d\d-\d\d"


def without_code(text: str) -> str:
    """Return a page without its code, in which brackets are no links and # is no heading."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return re.sub(r"^ {4}.*$", "", re.sub(r"`[^`\n]*`", "", text), flags=re.M)


def links_in(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors_in(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    named = re.findall(r"^#+ .+ \{#(\S+)\}$", text, re.M)  # on the site only
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(named)


def is_broken(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return True
    text = target.read_text(encoding="utf-8") if anchor else ""
    generated = re.search(r"^\[\[(api|cli|include)\b", text, re.M)  # when the site is built, which checks these anchors
    return bool(anchor) and not generated and anchor not in anchors_in(text)


def sections(text: str) -> list[tuple[str, str]]:
    """Return the title and the body of each section of a page."""
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.M)
    return list(zip(parts[::2], parts[1::2], strict=True))


def faults(body: str) -> list[str]:
    """Return what a decision lacks: a date, possibly with a revision after it, and three paragraphs in order."""
    first, *paragraphs = [part for part in body.strip().split("\n\n") if part]
    days = re.fullmatch(rf"({DATE})(?:, revised ({DATE}))?", first)
    found = []
    if days is None:
        found.append("date")
    else:
        read = [date.fromisoformat(day) for day in days.groups() if day]
        if read != sorted(set(read)):
            found.append("order")
    names = [match[1] if (match := re.match(r"\*\*(\w+)\.\*\* \S", part)) else None for part in paragraphs]
    return found if names == PARTS else [*found, "parts"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    links = [link for link in links_in(page.read_text(encoding="utf-8")) if not link.startswith("https://")]
    assert [link for link in links if is_broken(page, link)] == []


def test_a_broken_link_is_found():
    page = DECISIONS / "README.md"
    assert is_broken(page, "nothing.md") and is_broken(page, "../commands.md#nothing") and is_broken(page, "#nothing")
    assert not is_broken(page, "../commands.md#data") and not is_broken(page, "#decisions")
    assert links_in("[a](b.md#c) `[d](e)`\n\n    [f](g)\n") == ["b.md#c"]


@pytest.mark.parametrize("page", sorted(set(DECISIONS.glob("*.md")) - {DECISIONS / "README.md"}), ids=lambda p: p.stem)
def test_each_decision_has_a_date_and_three_parts(page):
    entries = sections(page.read_text(encoding="utf-8"))
    assert entries
    assert {title: faults(body) for title, body in entries if faults(body)} == {}
    assert page.name in links_in((DECISIONS / "README.md").read_text(encoding="utf-8"))


def test_titles_of_decisions_are_unique():
    titles = [title for page in DECISIONS.glob("*.md") for title, _ in sections(page.read_text(encoding="utf-8"))]
    assert len(titles) == len(set(titles)) >= 80


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        ("2026-11-25\n\n**Context.** A.\n\n**Decision.** B.\n\n**Consequence.** C.\n", []),
        ("2026-11-25, revised 2026-11-24\n\n**Context.** A.\n\n**Decision.** B.\n\n**Consequence.** C.\n", ["order"]),
        ("**Context.** A.\n\n**Decision.** B.\n\n**Consequence.** C.\n", ["date", "parts"]),
        ("2026-11-25\n\n**Context.** A.\n\n**Decision.** B.\n", ["parts"]),
        ("2026-11-25\n\n**Decision.** B.\n\n**Context.** A.\n\n**Consequence.** C.\n", ["parts"]),
    ],
)  # fmt: skip
def test_faults_of_a_decision_are_found(body, lacks):
    assert faults(body) == lacks
