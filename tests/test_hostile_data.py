"""Damaged, lying and oversized data and absurd options: one line, exit 2, and nothing is written.

Each file is refused through the command line in this process; `helpers/hostile.py` makes them.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import loglik
from helpers import hostile, hostile_arrays, hostile_tables
from helpers.alone import run_alone
from helpers.commands import refused, well
from loglik.data import frames, isolated, limits, load

GIGABYTE = 10**9
LINE = 1100  # characters of an error


def status(name: str) -> int:
    """Bytes of a line in /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def one_line(message: str) -> None:
    assert "\n" not in message and 0 < len(message) < LINE
    assert all(character.isprintable() for character in message)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and RLIMIT_DATA are Linux's")


EVERY = {"json": 4, "tables": 3}  # of the sources in `make test`: a process of its own reads each
cases = [(kind, EVERY.get(kind, 1)) for kind in hostile.MAKERS]
cases += [pytest.param(kind, 1, marks=pytest.mark.slow) for kind in EVERY]


@linux
@pytest.mark.parametrize(("kind", "every"), cases)
def test_hostile_files_are_refused(kind, every, tmp_path, monkeypatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "work").mkdir()
    sources = list(hostile.MAKERS[kind](tmp_path / "files"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(limits, "SMALLEST", 2**25)  # smaller bombs are made faster
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert len(set(sources)) >= 20
    for source in sources[::every]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        start = status("VmRSS")
        line = refused("fit", source, "--model", "independent", "--max-steps", 1, "--out", "run")
        one_line(line.removesuffix("\n"))
        assert status("VmHWM") - start < GIGABYTE, source
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


ARRAYS = {
    "none": None,
    "number": 1.0,
    "text": np.array("x"),
    "set": {1, 2},
    "list": [1, 2],
    "mapping": {"x": 1},
    "one": (np.ones(9),),
    "three": (1, 2, 3),
    "scalar": np.array(1.0),
    "empty": np.ones(0),
    "no-rows": np.ones((0, 3)),
    "no-columns": np.ones((30, 0)),
    "no-middle": np.ones((30, 0, 4)),
    "many-nothing": np.broadcast_to(np.float32(0), (10**12, 0)),
    "texts": np.array(["a", "b"] * 20),
    "objects": np.array([{}, 1] * 20, dtype=object),
    "complex": np.ones(40) * 1j,
    "times": np.arange(40).astype("M8[s]"),
    "records": np.zeros(40, dtype=[("a", "f4")]),
    "bytes": np.array([b"a"] * 40),
    "void": np.zeros(40, "V8"),
    "nan": np.full((40, 2), np.nan),
    "infinite": np.full((40, 2), np.inf),
    "too-large": np.full((40, 2), 1e300),
    "negative": np.full((40, 2), -1),
    "levels": np.full((40, 2), 10**9),
    "unsigned": np.full((40, 2), 2**64 - 1, dtype=np.uint64),
    "nan-half": np.full((40, 2), np.nan, np.float16),
    "tensor-nan": torch.full((40, 2), torch.nan),
    "tensor-scalar": torch.tensor(1.0),
    "tensor-empty": torch.ones(30, 0),
    "tensor-complex": torch.ones(40, 2) * 1j,
    "bfloat": torch.full((40, 2), torch.inf, dtype=torch.bfloat16),
    "few": np.ones((3, 2)),
    "label-scalar": (np.ones((40, 2)), np.array(1)),
    "label-number": (np.ones((40, 2)), 1),
    "label-short": (np.ones((40, 2)), np.arange(39)),
    "label-empty": (np.ones((40, 2)), np.ones(0)),
    "label-pairs": (np.ones((40, 2)), np.zeros((40, 2), int)),
    "label-nan": (np.ones((40, 2)), np.full(40, np.nan)),
    "label-half": (np.ones((40, 2)), np.arange(40) / 2),
    "label-one": (np.ones((40, 2)), np.zeros(40, int)),
    "label-objects": (np.ones((40, 2)), np.array([None] * 40)),
    "label-mixed": (np.ones((40, 2)), np.array([1, "x"] * 20, dtype=object)),
    "label-complex": (np.ones((40, 2)), np.arange(40) * 1j),
    "label-times": (np.ones((40, 2)), np.arange(40).astype("M8[s]")),
    "swapped": (np.zeros(40, int), np.ones((40, 2))),
    "ragged": ([[1, 2], [3]], [0, 1]),
    "nothing-pair": (None, None),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_hostile_arrays_are_refused(name) -> None:
    with pytest.raises(ValueError) as error:
        loglik.fit("independent", ARRAYS[name], max_steps=1)
    one_line(str(error.value))


# --- options ----------------------------------------------------------------------------------------------------------

ABSURD = ("nan", "-1", "1e30", str(10**30), "true", "", "abc", "[1]", "{a: 1}")
FIT = ("fit", "a.npy", "--out", "out", "--max-steps", "1", "--model", "flow")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with small runs, of a flow, a diffusion and a text, and their data."""
    root = tmp_path_factory.mktemp("runs")
    np.save(root / "a.npy", np.random.default_rng(0).normal(size=(40, 2)))
    (root / "t.txt").write_text("hello world " * 100)
    few = ("--max-steps", 1, "--set", "width=8", "--set", "depth=1")
    for model, data, *words in (("flow", "a.npy"), ("diffusion", "a.npy"), ("autoregressive", "t.txt", "window=8")):
        extra = [word for value in words for word in ("--set", value)]
        well("fit", root / data, "--model", model, "--out", root / model, *few, *extra)
    return root


def absurd_options() -> list[tuple[str, ...]]:
    """Commands with one absurd option each."""
    settings = (
        "batch_size",
        "max_epochs",
        "learning_rate",
        "momentum",
        "ema_decay",
        "devices",
        "num_nodes",
        "precision",
    )
    commands = [(*FIT, "--set", f"{name}={value}") for name in settings for value in ("nan", "-3", str(10**30), "true")]
    commands += [(*FIT, "--set", f"{name}={value}") for name in ("width", "depth", "bins") for value in ABSURD if value]
    commands += [
        (*FIT, "--set", f"split={value}") for value in ("nan/10/10", "80/10/inf", "80/10", "-80/90/90", "a/b/c")
    ]
    commands += [
        (*FIT, "--set", f"precision={value}") for value in ("bf16-true", "16-true", "16", "transformer-engine")
    ]
    commands += [(*FIT, option, value) for option in ("--max-steps", "--size", "--device") for value in ABSURD]
    commands += [("fit", "a.npy", "--out", "out", "--model", value) for value in ABSURD]
    commands += [("compare", "a.npy", "--out", "out", "--budget", value) for value in ABSURD]
    commands += [("compare", "a.npy", "--out", "out", "--samples", value) for value in ABSURD]
    commands += [("evaluate", "flow", option, value) for option in ("--samples", "--method") for value in ABSURD]
    commands += [("evaluate", "diffusion", "--steps", value) for value in ABSURD]
    commands += [("evaluate", "flow", "--split", value) for value in ABSURD if value]
    commands += [("sample", "diffusion", option, value) for option in ("-n", "--steps", "--seed") for value in ABSURD]
    commands += [("sample", "autoregressive", option, "nan") for option in ("--length", "--top-k", "--top-p", "-n")]
    commands += [(command, value) for command in ("evaluate", "sample", "encode", "verify") for value in ABSURD]
    commands += [("verify", "flow", "--out", "out", "--seed", value) for value in ABSURD]
    return commands


def test_absurd_options_are_refused(trained, monkeypatch) -> None:
    commands = absurd_options()
    assert len(set(commands)) == len(commands) >= 150
    (trained / "commands.json").write_text(json.dumps(commands))
    monkeypatch.chdir(trained)
    run_alone("-m", "helpers.refusals", "commands.json")


# --- limits and the reader's process ----------------------------------------------------------------------------------


def test_limits_are_said_and_raised(tmp_path, monkeypatch) -> None:
    assert limits.max_bytes(0) == 2**28 and limits.max_bytes(2**24) == 50 * 2**24
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 300)))
    monkeypatch.setenv("LOGLIK_MAX_BYTES", "1MB")
    with pytest.raises(ValueError, match=r"x\.npz: needs 2\.289 MiB of memory, and the limit is 1,000,000 bytes: if"):
        load(tmp_path / "x.npz")
    for text, number in {"8GiB": 2**33, "2.5 MB": 2_500_000, "1000": 1000, "3ki": 3072}.items():
        monkeypatch.setenv("LOGLIK_MAX_BYTES", text)
        assert limits.max_bytes(10**12) == number
    monkeypatch.setenv("LOGLIK_MAX_BYTES", "8GiB")
    assert len(load(tmp_path / "x.npz").train) == 800
    for text in ("much", "-1", "0", "1e9", "nan", "8 8", "9" * 5000):
        monkeypatch.setenv("LOGLIK_MAX_BYTES", text)
        with pytest.raises(ValueError, match="LOGLIK_MAX_BYTES must be a number of bytes such as 8GiB, got"):
            limits.max_bytes(1)


KINDS = {"parquet": "parquet", "arrow": "ipc", "jsonl": "ndjson"}


@pytest.mark.parametrize("suffix", KINDS)
def test_tables_are_equal_through_the_other_process(suffix, tmp_path, monkeypatch) -> None:
    frame = pl.DataFrame({"a": range(50), "b": [0.5, None] * 25, "c": ["x", "Ω"] * 25, "d": [True, None] * 25})
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(hostile_tables.table_bytes(KINDS[suffix], frame))
    monkeypatch.setattr(isolated, "PIECE", 28)  # pieces of 7 rows
    assert isolated.read_frame(path).equals(frames.parse(path)) and isolated.read_frame(path).equals(frame)


@linux
def test_a_reader_that_aborts_ends_only_its_own_process(tmp_path) -> None:
    """A false length in an Arrow file aborts the process that reads it with polars."""
    path = tmp_path / "t.arrow"
    path.write_bytes(aborting())
    done = subprocess.run([sys.executable, "-c", f"import polars; polars.read_ipc({str(path)!r})"], capture_output=True)
    assert done.returncode == -signal.SIGABRT
    with pytest.raises(ValueError, match=r"t\.arrow: not a readable Arrow file \(its reader ended with SIGABRT"):
        load(path)


def aborting() -> bytes:
    """An Arrow file in which the length of a decompressed buffer, which stands before it, is 2⁵⁵."""
    content = hostile_tables.table_bytes("ipc", pl.DataFrame({"a": [0.5, None] * 200}), compression="zstd")
    at = content.index(hostile_tables.ZSTANDARD) - 8
    return hostile_arrays.flip(content, at, (2**55).to_bytes(8, "little"))


@linux
def test_the_reader_has_limits_of_memory_and_time() -> None:
    program = "from loglik.data.isolated import _restrict; _restrict(2**20, 0); "
    run_alone("-c", program + "bytearray(2**26)")
    with pytest.raises(AssertionError, match="MemoryError"):
        run_alone("-c", program + "bytearray(2**29)")
    run_alone("-c", program + "import resource; assert resource.getrlimit(resource.RLIMIT_CPU)[0] == 5")
