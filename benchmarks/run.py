"""Measure loglik and its peers side by side; write RESULTS.md.

Each side of a workload is a process of its own (harness.py) with the same number of threads. In every round each side
makes one timed run in turn, so that a change of the machine's speed affects all sides alike; a side waits while another
computes. The table reports the median, the smallest and the largest run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import harness

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
PEERS = ROOT / ".venv-peers"
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
WORKLOADS = (
    "classifier", "resnet", "autoregressive", "generation", "flow", "flow_table", "vae", "diffusion", "unet",
)  # fmt: skip
SECTIONS = (*WORKLOADS, "muon")  # of RESULTS.md; muon.py writes its own
INTRODUCTION = """# Speed

`make bench` writes this file (`make bench ONLY=flow` replaces one section). Each side runs in a process of its own, and
all sides use the same number of threads. In every round each side makes one timed run in turn. Times are in
milliseconds per call: the median, minimum and maximum over the rounds. `against the fastest peer` is the median of the
fastest peer divided by that of the row: above 1, the row is faster. GFLOP/s counts matrix products, convolutions and
attention. `of the peak` is its ratio to the rate of a large matrix product, measured on the same machine in the same
run and precision, with the same number of threads. On a shared machine use `make bench ARGS="--threads 1"`: other
processes slow down threads that wait for one another more than one thread. Sections with fewer threads than cores
are separate.
"""


@dataclass
class Worker:
    """The process of a side; `described` is its first answer."""

    process: subprocess.Popen[str]
    described: dict[str, Any]

    def seconds(self, operation: str) -> float | None:
        """Return the seconds of one timed run; None after the process has failed."""
        if "unavailable" in self.described:
            return None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(operation) + "\n")
            self.process.stdin.flush()
            answer = _answer(self.process)
        except BrokenPipeError:
            answer = {"unavailable": "the process ended"}
        if "unavailable" in answer:
            self.described = answer
        return answer.get("seconds")


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line else {"unavailable": f"the process ended with code {process.wait()}"}


@contextmanager
def start(workload: str, side: str, python: str, threads: int) -> Iterator[Worker]:
    """Start a worker, and wait until it is built and warm."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    if environment.get("ATEN_CPU_CAPABILITY") == "avx2":  # NumPy's library has a switch of its own
        environment["OPENBLAS_CORETYPE"] = "Haswell"
    if side != "ours":
        environment.pop("PYTHONPATH", None)
    with (
        open(os.devnull, "w") as silence,
        subprocess.Popen(
            [python, str(HERE / "harness.py"), workload, side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=silence,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            yield Worker(process, _answer(process))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def peers_python() -> str:
    """Return the interpreter of the peers' environment; build it if it is missing or peers.txt has changed."""
    python = PEERS / "bin" / "python"
    wanted = hashlib.sha256((HERE / "peers.txt").read_bytes() + (ROOT / "constraints.txt").read_bytes()).hexdigest()
    stamp = PEERS / "ready"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print("building .venv-peers", flush=True)
        if not python.exists():
            subprocess.run([os.environ.get("PYTHON", sys.executable), "-m", "venv", str(PEERS)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(HERE / "peers.txt")], check=True)
        stamp.write_text(wanted)
    return str(python)


def measure(workload: str, rounds: int, threads: int, peers: str) -> tuple[dict[str, Worker], dict[str, dict]]:
    """Return the sides, and the seconds of every round for each operation and side that supports it."""
    times: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(start(workload, side, sys.executable if side == "ours" else peers, threads))
            for side in harness.load_workload(workload).SIDES
        }
        for operation in workers["ours"].described.get("calls", {}):
            supporting = [side for side, worker in workers.items() if operation in worker.described.get("calls", {})]
            runs: dict[str, list[float]] = {side: [] for side in supporting}
            for turn in range(rounds):
                for side in supporting[turn % len(supporting) :] + supporting[: turn % len(supporting)]:
                    seconds = workers[side].seconds(operation)
                    if seconds is not None:
                        runs[side].append(seconds)
            times[operation] = runs
    return workers, times


def table(workers: dict[str, Worker], times: dict[str, dict[str, list[float]]], peak: dict[str, float]) -> list[str]:
    """Return the rows of a Markdown table."""
    rows = [
        "| operation | side | parameters | median ms | min | max | against the fastest peer | GFLOP/s | of the peak |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for operation, runs in times.items():
        medians = {side: statistics.median(seconds) for side, seconds in runs.items() if seconds}
        fastest = min((median for side, median in medians.items() if side != "ours"), default=None)
        for side, worker in workers.items():
            if side not in medians:
                reason = worker.described.get("unavailable")
                rows.append(f"| {operation} | {side} | | {f'not available: {reason}' if reason else 'not supported'} |")
                continue
            median, seconds = medians[side], runs[side]
            ratio = "" if fastest is None else f"{fastest / median:.2f}"
            work = worker.described["flops"].get(operation)
            rate = work / median / 1e9 if work else None
            limit = peak.get("bfloat16" if operation.endswith("bf16") else "float32")
            cells = [
                operation,
                side,
                f"{worker.described['parameters']:,}",
                *(f"{1e3 * value:.2f}" for value in (median, min(seconds), max(seconds))),
                ratio,
                "" if rate is None else f"{rate:.1f}",
                "" if rate is None else "not native" if limit is None else f"{rate / limit:.0%}",
            ]
            rows.append("| " + " | ".join(cells) + " |")
    if not times:
        rows.append(f"| | ours | | not available: {workers['ours'].described.get('unavailable')} |")
    return rows


def section(workload: str, rounds: int, threads: int, peers: str) -> str:
    """Return a workload's section of RESULTS.md: shapes, table, notes, machine, versions and date."""
    module = harness.load_workload(workload)
    load = os.getloadavg()[0]
    before = harness.matrix_peak(threads)
    workers, times = measure(workload, rounds, threads, peers)
    after = harness.matrix_peak(threads)
    peak = {name: max(before[name], after[name]) for name in before}
    half = f"{peak['bfloat16']:.0f}" if "bfloat16" in peak else "not native"
    versions: dict[str, str] = {}
    for worker in workers.values():
        versions |= worker.described.get("versions", {})
    shapes = ", ".join(
        f"{name} {' × '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in module.SHAPES.items()
    )
    width = "1 thread" if threads == 1 else f"{threads} threads"
    lines = [
        f"## {module.TITLE}" + (f", {width}" if threads < PROCESSORS else ""),
        "",
        f"{shapes[0].upper()}{shapes[1:]}.",
        "",
        *table(workers, times, peak),
        "",
        module.NOTES,
        "",
        f"Measured {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC on {machine()}, {width}, load {load:.1f} at "
        f"the start; {rounds} rounds; matrix peak {peak['float32']:.0f} GFLOP/s in float32, {half} in bfloat16; "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return the name of the CPU, the number of cores and the memory."""
    name, memory = platform.processor() or platform.machine(), ""
    info, size = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if info.is_file() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1]
    if size.is_file() and (found := re.search(r"MemTotal:\s*(\d+) kB", size.read_text())):
        memory = f", {int(found[1]) / 2**20:.0f} GiB"
    return f"{name}, {os.cpu_count()} cores{memory}"


def write(sections: dict[str, str], path: Path = RESULTS) -> None:
    """Replace the sections measured now and keep the others, in the order of SECTIONS.

    A section's name is its workload's, followed by the number of threads if these were fewer than the processors.
    """
    kept = {}
    if path.is_file():
        parts = re.split(r"^<!-- (\w+(?: \d+)?) -->\n", path.read_text(), flags=re.MULTILINE)
        kept = dict(zip(parts[1::2], parts[2::2], strict=True))
    kept |= {name: text + "\n" for name, text in sections.items()}
    names = sorted(kept, key=lambda name: (SECTIONS.index(name.split()[0]), name))
    body = "".join(f"<!-- {name} -->\n{kept[name].rstrip()}\n\n" for name in names)
    path.write_text(f"{INTRODUCTION}\n{body.rstrip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=WORKLOADS, help="measure one workload and keep the others' results")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each operation and side")
    parser.add_argument("--threads", type=int, default=PROCESSORS, help="of each side")
    parser.add_argument("--nanogpt", metavar="PATH", help="the folder with nanoGPT's model.py; or set NANOGPT")
    arguments = parser.parse_args()
    if arguments.nanogpt:
        os.environ["NANOGPT"] = arguments.nanogpt
    peers = peers_python()
    for name in [arguments.only] if arguments.only else WORKLOADS:
        text = section(name, arguments.rounds, arguments.threads, peers)
        fewer = arguments.threads < PROCESSORS
        write({f"{name} {arguments.threads}" if fewer else name: text})
        print(text, flush=True)


if __name__ == "__main__":
    main()
