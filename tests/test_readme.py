"""The Python of the README and of docs/python.md runs as printed, with fewer steps."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCKS = [
    pytest.param(page, block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block(page, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = block.replace('max_time="20s"', "max_steps=3").replace("max_steps=500", "max_steps=3")
    assert quick != block
    exec(compile(quick, str(page), "exec"), {})
    assert capsys.readouterr().out


def test_there_are_blocks():
    assert [block.id for block in BLOCKS] == ["README-0", "python-0", "python-1", "python-2"]
