"""Compile the spline's kernel where there is a C compiler; without one the package is pure Python, and slower there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC"]


class Kernel(BuildHookInterface):
    """`spline.c` to `spline.so` beside it: plain C, so one for all versions of Python and of torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root, "src", "loglik", "flows", "native", "spline.c")
        target = source.with_suffix(".so")
        target.unlink(missing_ok=True)
        compiler = next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "cc", "gcc", "clang"])), None)
        if compiler is None:
            return self.app.display_warning("no C compiler: splines run as tensor operations")
        made = subprocess.run([compiler, *FLAGS, "-o", target, source], capture_output=True, text=True)
        if made.returncode:
            return self.app.display_warning(f"splines run as tensor operations: {compiler} says {made.stderr.strip()}")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
