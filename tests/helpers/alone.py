"""Python in a process of its own: the compiler cannot trace through the checks on signatures."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]  # of the tests


def run_alone(*words):
    """Run `python WORDS`, which must succeed, with this project and these tests to import."""
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
