"""Say which dependencies a Python lacks, and collect the parts of gpu.sh into results.json and summary.txt.

`gpu_report.py WORK OUT` reads the parts' files in WORK; `gpu_report.py --machine DEVICE` describes the machine, with
the standard library alone until it has said what is missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUSY = 0.85  # the least share of the time that the device is to work
TARGETS = {  # of a minute on one H100 or H200 with the defaults, on Fashion-MNIST and tiny Shakespeare
    "train-diffusion": ("bits_per_dim", "at most", 2.80),
    "train-vae": ("bits_per_dim", "at most", 2.86),
    "train-glow": ("bits_per_dim", "at most", 3.12),
    "train-classifier": ("accuracy", "at least", 0.945),
    "train-text": ("nats", "at least", -1.45),
}
DATA = {"fashion-mnist", "tinyshakespeare.txt"}  # that the targets are for


def missing(python_packages: str) -> list[str]:
    """Return the packages of pyproject.toml's list that are not installed.

    >>> missing('dependencies = [\\n    "torch>=2",  # why\\n    "no-such-package>=1",\\n]')
    ['no-such-package']
    """
    found = re.search(r"^dependencies = \[(.*?)^\]", python_packages, re.MULTILINE | re.DOTALL)
    names = re.findall(r'^\s*"([A-Za-z0-9._-]+)', found[1] if found else "", re.MULTILINE)
    absent = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def machine(device: str) -> None:
    """Print versions, the device and what is missing; exit with 1 where nothing can run."""
    absent = missing((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    print(f"Python {platform.python_version()} ({sys.executable}), not installed: {', '.join(absent) or 'nothing'}")
    import torch

    print(f"torch {torch.__version__}")
    if device != "cpu":
        print(torch.get_device_module(device).get_device_name())


def judge(name: str, row: dict[str, Any]) -> list[str]:
    """Return lines that compare a training with its targets."""
    lines = []
    if name in TARGETS:
        key, side, target = TARGETS[name]
        value = row.get(key)
        shown = "not measured" if value is None else f"{value:.4g}"
        data = Path(str(row["data"])).name
        if data in DATA:
            held = value is not None and (value <= target if side == "at most" else value >= target)
            lines.append(f"{name}: {key} {shown}, {side} {target:g}: {'held' if held else 'missed'}")
        else:
            lines.append(f"{name}: {key} {shown} on {data}, for which there is no target")
    share, step = row.get("busy_share"), row.get("ms_per_step")
    if share is None:
        lines.append(f"{name}: busy share not measured in {row.get('steps')} steps")
    else:
        what = f"{share:.0%} of {step:.1f} ms, {row['kernels_per_step']:.0f} kernels a step, {row['steps']} steps"
        lines.append(f"{name}: busy {what}: {'held' if share >= BUSY else 'missed'}")
    return lines


def collect(work: Path, out: Path) -> None:
    """Write results.json and summary.txt from the parts so far, and print the summary."""
    parts = [json.loads(path.read_text()) for path in sorted(work.glob("*.part"), key=lambda p: p.stat().st_mtime)]
    trainings = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("train-*.json"))}
    lines = []
    for part in parts:
        end = {0: "done", 124: "stopped at its limit", 137: "stopped at its limit"}
        lines.append(f"{part['part']}: {end.get(part['code'], 'failed')} after {part['seconds']} s")
        if part["code"]:
            log = [line for line in (work / f"{part['part']}.log").read_text(errors="replace").splitlines() if line]
            lines += [f"    {line[:200]}" for line in log[-3:]]
    for name, row in trainings.items():
        lines += judge(name, row)
    (out / "results.json").write_text(json.dumps({"parts": parts, "trainings": trainings}, indent=2) + "\n")
    text = "\n".join(lines) + "\n"
    (out / "summary.txt").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    if sys.argv[1] == "--machine":
        machine(sys.argv[2])
    else:
        collect(Path(sys.argv[1]), Path(sys.argv[2]))
