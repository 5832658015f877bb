"""The examples run, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_degradation(tmp_path):
    words = ["--steps", "2", "--width", "2", "--depths", "8", "14", "--points", "2", "--out", str(tmp_path / "d.png")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "degradation.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("training error") == 4 and "residual, 14 layers" in done.stdout
    assert (tmp_path / "d.png").stat().st_size > 5000


def test_gradient_estimators(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "gradient_estimators.py"), "--draws", "512", "--out", str(tmp_path / "g.png")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("variance") == 2 and (tmp_path / "g.png").stat().st_size > 5000
