"""A gigabyte of text is never held in memory."""

import json
import os
import subprocess
import sys

import pytest

GIGABYTE = 10**9
LIMIT = 2 * 10**9

PROGRAM = """
import json, resource, sys
import loglik
options = json.loads(sys.argv[3])
run = loglik.fit("autoregressive", sys.argv[1], out=sys.argv[2], max_steps=300, width=16, depth=1, heads=1, **options)
from loglik.data import as_data
test = as_data(run.config["source"], like=run.spec, beside=run.path).test.x.stream
print(json.dumps({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "tokens": len(test)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_peak_memory_of_training(tokenizer, tmp_path) -> None:
    path = tmp_path / "big.txt"
    lines = "".join(
        f"{i * i % 9973} naïve cats sat on {i} mats, and {i % 89} dogs ran.\n" for i in range(10**5)
    ).encode()
    with path.open("wb") as file:
        while file.tell() < GIGABYTE:
            file.write(lines)
    options = {"tokenizer": tokenizer, "window": 64, "batch_size": 256, "precision": "32-true"}
    words = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "run"), json.dumps(options)]
    done = subprocess.run(words, env=os.environ, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(tokenizer, found)
    assert found["tokens"] > 0.09 * GIGABYTE * (0.9 if tokenizer == "characters" else 1)
    assert found["bytes"] < LIMIT
    for file in tmp_path.rglob("*.bin"):
        file.unlink()
    path.unlink()
