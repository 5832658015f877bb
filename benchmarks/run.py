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
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Semaphore
from typing import Any

import device
import harness

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
PEERS = ROOT / ".venv-peers"
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
WORKLOADS = (
    "classifier", "resnet", "autoregressive", "generation", "flow", "flow_table", "vae", "diffusion", "unet",
)  # fmt: skip
GPU_WORKLOADS = (  # those that decide first: a limit of time cuts the last ones
    "flow_table", "generation", "unet large", "vae", "resnet large", "generation large", "unet", "resnet",
    "flow_table large", "vae large", "diffusion", "flow", "autoregressive", "classifier",
)  # fmt: skip
SECTIONS = (*(name + large for name in WORKLOADS for large in ("", " large")), "muon")  # of RESULTS.md
INTRODUCTION = """# Speed

`make bench` writes this file (`make bench ONLY=flow` replaces one section). Each side runs in a process of its own, and
all sides use the same number of threads. In every round each side makes one timed run in turn. Times are in
milliseconds per call: the median, minimum and maximum over the rounds. `against the fastest peer` is the median of the
fastest peer divided by that of the row: above 1, the row is faster. GFLOP/s counts matrix products, convolutions and
attention. `of the peak` is its ratio to the rate of a large matrix product, measured on the same machine in the same
run and precision, with the same number of threads. On a shared machine use `make bench ARGS="--threads 1"`: other
processes slow down threads that wait for one another more than one thread. Sections with fewer threads than cores
are separate.

`make bench DEVICE=cuda` measures on a GPU and writes a chapter with the card's name. Models and data are on the card,
and each look at the clock waits for the card. Peers run in the Python that runs loglik; one that is missing there is a
row `not installed`. `compiled` is torch.compile, `CUDA graph` a replay of the recorded step, for every side, and
`against the fastest peer` takes the peer's fastest variant. `of the bandwidth` divides the bytes that the eager kernels
read and write by the time, and by the rate of a copy in the card's memory; caches can raise it above 100 %.
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
            answer = _answer(self.process, None)
        except BrokenPipeError:
            answer = {"unavailable": "the process ended"}
        if "unavailable" in answer:
            self.described |= answer
        return answer.get("seconds")


def _answer(process: subprocess.Popen[str], limit: float | None) -> dict[str, Any]:
    """Return the next line of a side; end the process if it takes longer than the limit in seconds."""
    assert process.stdout is not None
    if limit is not None and not select.select([process.stdout], [], [], limit)[0]:
        process.kill()
        return {"unavailable": f"not ready in {limit:.0f} s"}
    line = process.stdout.readline()
    return json.loads(line) if line else {"unavailable": f"the process ended with code {process.wait()}"}


@contextmanager
def start(workload: str, side: str, python: str, threads: int, limit: float | None = None) -> Iterator[Worker]:
    """Start a worker, and wait until it is built and warm."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    if environment.get("ATEN_CPU_CAPABILITY") == "avx2":  # NumPy's library has a switch of its own
        environment["OPENBLAS_CORETYPE"] = "Haswell"
    if side != "ours" and python != sys.executable:
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
            yield Worker(process, _answer(process, limit))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


@contextmanager
def open_sides(
    workload: str, threads: int, peers: str, limit: float | None, slots: Semaphore
) -> Iterator[dict[str, Worker]]:
    """Build all sides of a workload, each in one of the slots."""
    sides = harness.load_workload(workload).SIDES
    with ExitStack() as stack, ThreadPoolExecutor(len(sides)) as pool:

        def build(side: str) -> Worker:
            python = sys.executable if side == "ours" else peers
            with slots:
                return stack.enter_context(start(workload, side, python, threads, limit))

        yield dict(zip(sides, pool.map(build, sides), strict=True))


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


def measure(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every round for each operation and side that supports it."""
    times: dict[str, dict[str, list[float]]] = {}
    for operation in workers["ours"].described.get("calls", {}):
        supporting = [side for side, worker in workers.items() if operation in worker.described.get("calls", {})]
        runs: dict[str, list[float]] = {side: [] for side in supporting}
        for turn in range(rounds):
            for side in supporting[turn % len(supporting) :] + supporting[: turn % len(supporting)]:
                seconds = workers[side].seconds(operation)
                if seconds is not None:
                    runs[side].append(seconds)
        times[operation] = runs
    for operation in workers["ours"].described.get("failed", {}):
        times.setdefault(operation, {})
    return times


def table(workers: dict[str, Worker], times: dict[str, dict[str, list[float]]], peak: dict[str, float]) -> list[str]:
    """Return the rows of a Markdown table; on a device with a measured bandwidth the table has one more column."""
    wide = "bandwidth" in peak
    rows = [
        "| operation | side | parameters | median ms | min | max | against the fastest peer | GFLOP/s | of the peak |"
        + " of the bandwidth |" * wide,
        "|---|---|--:|--:|--:|--:|--:|--:|--:|" + "--:|" * wide,
    ]
    medians = {
        operation: {side: statistics.median(seconds) for side, seconds in runs.items() if seconds}
        for operation, runs in times.items()
    }
    fastest: dict[str, float] = {}  # of the peers, over the variants of an operation
    for operation, here in medians.items():
        plain = harness.plain(operation)
        peers = [median for side, median in here.items() if side != "ours"]
        fastest[plain] = min([*peers, fastest.get(plain, float("inf"))])
    for operation, runs in times.items():
        best = fastest[harness.plain(operation)]
        for side, worker in workers.items():
            described = worker.described
            if side not in medians[operation]:
                reason = described.get("unavailable") or described.get("failed", {}).get(operation)
                rows.append(f"| {operation} | {side} | | {_absence(reason)} |")
                continue
            median, seconds = medians[operation][side], runs[side]
            work, traffic = described["flops"].get(operation), described.get("bytes", {}).get(operation)
            rate = work / median / 1e9 if work else None
            limit = peak.get("bfloat16" if "bf16" in operation else "float32")
            cells = [
                operation,
                side,
                f"{described['parameters']:,}",
                *(f"{1e3 * value:.2f}" for value in (median, min(seconds), max(seconds))),
                "" if best == float("inf") else f"{best / median:.2f}",
                "" if rate is None else f"{rate:.1f}",
                "" if rate is None else "not native" if limit is None else f"{rate / limit:.0%}",
            ]
            if wide:
                cells.append(f"{traffic / median / 1e9 / peak['bandwidth']:.0%}" if traffic else "")
            rows.append("| " + " | ".join(cells) + " |")
    if not times:
        rows.append(f"| | ours | | {_absence(workers['ours'].described.get('unavailable'))} |")
    return rows


def _absence(reason: str | None) -> str:
    if reason is None:
        return "not supported"
    return f"not installed: {reason.split()[0]}" if reason.endswith(" is not installed") else f"not available: {reason}"


def section(workload: str, rounds: int, threads: int, workers: dict[str, Worker]) -> str:
    """Return a workload's section of RESULTS.md: shapes, table, notes, machine, versions and date."""
    module = harness.load_workload(workload)
    load = os.getloadavg()[0]
    before = device.matrix_peak(threads)
    times = measure(workers, rounds)
    after = device.matrix_peak(threads)
    peak = {name: max(before[name], after[name]) for name in before}
    half = f"{peak['bfloat16']:.0f}" if "bfloat16" in peak else "not native"
    memory = ""
    if (rate := device.bandwidth()) is not None:
        peak["bandwidth"] = rate
        memory = f"memory bandwidth {rate:.0f} GB/s; "
    versions: dict[str, str] = {}
    for worker in workers.values():
        versions |= worker.described.get("versions", {})
    shapes = ", ".join(
        f"{name} {' × '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in module.SHAPES.items()
        if value
    )
    width = "1 thread" if threads == 1 else f"{threads} threads"
    fewer = device.is_cpu() and threads < PROCESSORS
    lines = [
        f"## {module.TITLE}{', large' * workload.endswith(' large')}" + (f", {width}" if fewer else ""),
        "",
        f"{shapes[0].upper()}{shapes[1:]}.",
        "",
        *table(workers, times, peak),
        "",
        module.NOTES,
        "",
        f"Measured {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC on {device.describe()}, {width}, load {load:.1f} at "
        f"the start; {rounds} rounds; matrix peak {peak['float32']:.0f} GFLOP/s in float32, {half} in bfloat16; "
        f"{memory}Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def write(sections: dict[str, str], path: Path | None = None, card: str = "") -> None:
    """Replace the sections measured now and keep the others, in the order of SECTIONS, the chapter of a card last.

    A section's name is its workload's, followed by the number of threads if these were fewer than the processors. On a
    GPU the card's name and a colon stand before it.
    """
    path = path or RESULTS
    kept = {}
    if path.is_file():
        parts = re.split(r"^<!-- (.+?) -->\n", path.read_text(), flags=re.MULTILINE)
        bodies = [re.sub(r"^# .*$", "", text, flags=re.MULTILINE) for text in parts[2::2]]  # without a chapter's title
        kept = dict(zip(parts[1::2], bodies, strict=True))
    kept |= {f"{card}: {name}" if card else name: text + "\n" for name, text in sections.items()}

    def place(name: str) -> tuple[str, int, str]:
        chapter, _, workload = name.rpartition(": ")
        return chapter, SECTIONS.index(re.sub(r" \d+$", "", workload)), name

    body, chapter = "", ""
    for name in sorted(kept, key=place):
        before, chapter = chapter, name.rpartition(": ")[0]
        heading = f"# {chapter}\n\n" if chapter != before else ""
        body += f"<!-- {name} -->\n{heading}{kept[name].strip()}\n\n"
    path.write_text(f"{INTRODUCTION}\n{body.rstrip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="A,B", help="measure these workloads and keep the others' results")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, which adds the chapter of the card")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each operation and side")
    parser.add_argument("--threads", type=int, default=PROCESSORS, help="of each side")
    parser.add_argument("--nanogpt", metavar="PATH", help="the folder with nanoGPT's model.py; or set NANOGPT")
    parser.add_argument("--peers", metavar="PYTHON", help="the peers' Python; on the CPU it is built, else this one")
    parser.add_argument("--jobs", type=int, default=1, help="sides that are built at a time; above 1, of all workloads")
    parser.add_argument("--build-limit", type=float, metavar="SECONDS", help="for a side to be built and warm")
    parser.add_argument("--hold", type=Path, metavar="FILE", help="measure when FILE exists, and build until then")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else WORKLOADS if arguments.device == "cpu" else GPU_WORKLOADS
    if unknown := [name for name in names if name.removesuffix(" large") not in WORKLOADS]:
        parser.error(f"unknown workload {', '.join(unknown)}: choose from {', '.join(WORKLOADS)}")
    if arguments.nanogpt:
        os.environ["NANOGPT"] = arguments.nanogpt
    os.environ[device.SETTINGS] = arguments.device
    peers = arguments.peers or (peers_python() if device.is_cpu() else sys.executable)
    fewer = device.is_cpu() and arguments.threads < PROCESSORS
    card = "" if device.is_cpu() else device.describe().rpartition(", ")[0]
    options = (arguments.threads, peers, arguments.build_limit, Semaphore(arguments.jobs))

    def report(name: str, workers: dict[str, Worker]) -> None:
        text = section(name, arguments.rounds, arguments.threads, workers)
        write({f"{name} {arguments.threads}" if fewer else name: text}, arguments.results, card)
        print(text, flush=True)

    if arguments.jobs == 1:
        for name in names:
            with open_sides(name, *options) as workers:
                report(name, workers)
        return
    with ThreadPoolExecutor(len(names)) as pool, ExitStack() as stack:
        scopes = {name: stack.enter_context(ExitStack()) for name in names}
        opened = {name: pool.submit(scope.enter_context, open_sides(name, *options)) for name, scope in scopes.items()}
        built = {name: future.result() for name, future in opened.items()}
        print("all sides are built", flush=True)
        while arguments.hold and not arguments.hold.exists():
            time.sleep(0.2)
        for name, scope in scopes.items():
            report(name, built[name])
            scope.close()  # gives its memory back


if __name__ == "__main__":
    main()
