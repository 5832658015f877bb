"""The README's Python runs as it stands there, but for less time."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = block.replace('max_time="20s"', "max_steps=3").replace("max_steps=500", "max_steps=3")
    assert quick != block
    exec(compile(quick, str(README), "exec"), {})
    assert capsys.readouterr().out


def test_there_are_blocks():
    assert len(BLOCKS) == 2
