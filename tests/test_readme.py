"""The Python of the README, docs/python.md, the Start page and the how-to pages runs as printed, with fewer steps."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOWTO = sorted(path for path in (DOCS / "howto").glob("*.md") if not path.name.endswith(".zh.md"))
PAGES = [DOCS / "index.md", *HOWTO]  # read from top to bottom: a block may use what those above it made
QUICK = {
    'max_time="20s"': "max_steps=3",
    "max_steps=500": "max_steps=3",
    'budget="20s"': 'budget="1s"',
    "steps = 200": "steps = 3",
    'max_time="10s"': "max_steps=20",
    "max_steps=100": "max_steps=20",
}


def blocks_of(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


def quick(text: str) -> str:
    for long, short in QUICK.items():
        text = text.replace(long, short)
    return text


BLOCKS = [
    pytest.param(page, block, id=f"{page.stem}-{number}")
    for page in (ROOT / "README.md", DOCS / "python.md")
    for number, block in enumerate(blocks_of(page))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block(page, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert quick(block) != block
    exec(compile(quick(block), str(page), "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script in re.findall(r"<<'EOF'\n(.*?)^EOF$", page.read_text(encoding="utf-8"), flags=re.S | re.M):
        exec(compile(script, str(page), "exec"), {})
    blocks = blocks_of(page)
    assert quick("".join(blocks)) != "".join(blocks) or not blocks
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(quick(block), str(page), "exec"), names)
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_chinese_page_has_the_same_code(page):
    chinese = page.with_suffix(".zh.md")
    for language in ("python", "bash", "text"):
        assert [without_comments(b) for b in blocks_of(page, language)] == [
            without_comments(b) for b in blocks_of(chinese, language)
        ]


def without_comments(code: str) -> str:
    return re.sub(r" *#.*", "", code)


def test_there_are_blocks():
    assert [block.id for block in BLOCKS] == ["README-0", "python-0", "python-1", "python-2", "python-3"]
    assert len(HOWTO) == 21 and sum(bool(blocks_of(page)) for page in PAGES) == 19
