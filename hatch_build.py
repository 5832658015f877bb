"""Compile the spline's kernel if there is a C compiler; without one the package is pure Python, its splines slower."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC"]
X86 = {
    "avx512": ["-DWIDTH=16", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-DWIDTH=8", "-mavx2", "-mfma"],
}


class Kernel(BuildHookInterface):
    """Compile `spline.c` for each set of vector instructions; plain C, so that it fits every Python and torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root, "src", "loglik", "cpu", "native")
        for old in folder.glob("*.so"):
            old.unlink()
        compiler = next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "cc", "gcc", "clang"])), None)
        if compiler is None:
            return self.app.display_warning("no C compiler: splines run as tensor operations")
        targets = X86 if platform.machine() in ("x86_64", "AMD64") else {"other": []}
        for target, flags in targets.items():
            command = [compiler, *FLAGS, *flags, "-o", folder / f"spline.{target}.so", folder / "spline.c"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                self.app.display_warning(f"splines run as tensor operations on {target}: {compiler} says {done.stderr}")
        if any(folder.glob("*.so")):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
