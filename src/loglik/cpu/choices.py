"""What is faster on this machine's CPU: torch's operations or loglik's own, measured once and kept in a cache file.

Another order of summation rounds differently, so a choice is part of what makes a training repeatable. It is made once
for a CPU, number of threads and version of torch, and read from the file afterwards. loglik's own operation is chosen
only where it is clearly faster; where the file cannot be written, torch's own operations run.

The environment variable LOGLIK_CPU fixes all choices: `torch` for torch's own operations, `loglik` for loglik's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "MIN_ONEDNN_FLOPS",
    "NEVER",
    "Choices",
    "cache_file",
    "choices",
    "onednn_flops",
    "single_thread_flops",
    "use_choices",
]

VARIABLE = "LOGLIK_CPU"
FORMAT = "1"  # of the file: higher where its choices mean or measure something else
NEVER = 2**62  # FLOPs that no product has
MIN_ONEDNN_FLOPS = 2**21  # below this size a call of oneDNN takes longer than it saves on every CPU measured
# what changes the speed of torch's own operations besides the CPU
SWITCHES = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The operations that replace torch's own; by default none.

    Attributes:
        forward, grad_x, grad_weight: the FLOPs from which oneDNN computes a linear map and its two gradients.
        single_thread: the FLOPs up to which an operation runs on one thread.
        attention: whether attention in bfloat16 is computed as three products.
        bfloat16: whether products in bfloat16 are faster than in float32, because the CPU has instructions for them.
    """

    forward: int = NEVER
    grad_x: int = NEVER
    grad_weight: int = NEVER
    single_thread: int = 0
    attention: bool = False
    bfloat16: bool = False

    @cached_property
    def smallest(self) -> int:
        """The FLOPs from which oneDNN computes a linear map or one of its gradients."""
        return min(self.forward, self.grad_x, self.grad_weight)

    @classmethod
    def from_dict(cls, saved: Any) -> Choices | None:
        """Return the choices that `to_dict` returned; None unless there is each field with its type."""
        types = {field.name: type(field.default) for field in fields(cls)}
        if not isinstance(saved, Mapping):
            return None
        values: dict[str, Any] = {name: NEVER if value == "never" else value for name, value in saved.items()}
        return cls(**values) if {name: type(value) for name, value in values.items()} == types else None

    def to_dict(self) -> dict[str, int | str]:
        """Return the fields by name, as config.yaml and the cache file have them: `never` for NEVER."""
        return {name: "never" if value == NEVER else value for name, value in asdict(self).items()}


_chosen: Choices | None = None  # of this process, once it is known


def choices() -> Choices:
    """Return the choices of this process; the first call on a machine measures them."""
    global _chosen
    if _chosen is None:
        _chosen = _fixed() or _kept() or Choices(bfloat16=_reports_bfloat16())
    return _chosen


@torch.compiler.assume_constant_result
def single_thread_flops() -> int:
    """Return the FLOPs up to which an operation runs on one thread."""
    return choices().single_thread


@torch.compiler.assume_constant_result
def onednn_flops(role: str) -> int:
    """Return the FLOPs from which oneDNN computes a product: `forward`, `grad_x`, `grad_weight`, or the `smallest`."""
    return getattr(_chosen or choices(), role)  # type: ignore[no-any-return]


@contextmanager
def use_choices(chosen: Choices | None) -> Iterator[None]:
    """Use these choices in the block, such as those of a resumed run; None changes nothing."""
    global _chosen
    before = _chosen
    if chosen is not None:
        _chosen = chosen
    try:
        yield
    finally:
        _chosen = before if chosen is not None else _chosen


def _fixed() -> Choices | None:
    """Return the choices that the environment variable fixes; None if it is unset.

    Raises ValueError for an unknown value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "torch", "loglik"):
        raise ValueError(f"{VARIABLE} must be torch or loglik, or unset to measure what is faster; got {value!r}")
    if value == "torch":
        return Choices(bfloat16=_reports_bfloat16())
    if value == "loglik":
        onednn = MIN_ONEDNN_FLOPS
        return Choices(
            forward=onednn, grad_x=onednn, grad_weight=onednn, single_thread=2**24,
            attention=True, bfloat16=_reports_bfloat16(),
        )  # fmt: skip
    return None


def _reports_bfloat16() -> bool:
    """Return whether torch reports instructions that multiply in bfloat16, and may use them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # also ATEN_CPU_CAPABILITY=avx2 on a CPU that has more
        capabilities = {name: has for name, has in capabilities.items() if not name.startswith("avx512")}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "bf16"))  # bf16: on ARM


def _kept() -> Choices | None:
    """Return the choices in the cache file, measured and written there if it has none; None if it can't be written."""
    machine = _machine()
    file = cache_file(machine)
    found = _read(file, machine)
    if found is not None:
        return found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
    except OSError:
        return None
    partial = Path(name)
    try:
        from loglik.cpu.measure import measure

        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"machine": machine, "choices": measure().to_dict()}, stream, indent=1)
        try:
            os.link(partial, file)  # fails if another process was first: both then use what that one measured
        except OSError:
            if _read(file, machine) is None:  # a damaged file, or a file system without links
                partial.replace(file)
        return _read(file, machine)
    except OSError:
        return None
    finally:
        partial.unlink(missing_ok=True)


def _read(file: Path, machine: dict[str, str]) -> Choices | None:
    """Return a file's choices; None if it is missing, damaged or another machine's."""
    try:
        saved = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(saved, dict) or saved.get("machine") != machine:
        return None
    return Choices.from_dict(saved.get("choices"))


def cache_file(machine: dict[str, str] | None = None) -> Path:
    """Return the file with this machine's choices, in the user's folder for caches."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "loglik"
    digest = hashlib.sha256(json.dumps(machine or _machine(), sort_keys=True).encode()).hexdigest()
    return folder / f"cpu-{digest[:12]}.json"


def _machine() -> dict[str, str]:
    """Return what the choices depend on."""
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.version.__version__,
        "format": FORMAT,
        **{name: os.environ.get(name, "") for name in SWITCHES},
    }


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
