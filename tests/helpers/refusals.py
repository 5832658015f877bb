"""Run commands that must be refused, without the checks on signatures, which have words of their own for settings.

`python refusals.py COMMANDS.json` fails with the first command that does not end in one line and exit status 2, or that
writes a file.
"""

import json
import sys
from pathlib import Path

from helpers.commands import refused

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text()):
        before = {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}
        line = refused(*words).removesuffix("\n")
        assert len(line) < 1100 and line.isprintable(), (words, line)
        assert {path: path.lstat().st_mtime_ns for path in Path().rglob("*")} == before, words
