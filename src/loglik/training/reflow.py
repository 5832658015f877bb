"""The option `reflow`: the run whose flow a rectified flow straightens, read for training only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loglik import runs
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import RectifiedFlow

__all__ = ["attach_first_flow", "with_first_options"]

NOT_INHERITED = ("reflow", "weighting", "method", "steps", "T")  # options that say nothing of the network


def with_first_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with the path of `reflow` resolved and the network's options of its run where not passed.

    Raises FileNotFoundError if there is no such run.
    """
    if options.get("reflow") is None:
        return options
    path = Path(options["reflow"]).resolve()
    first = runs.read_config(path)["options"]
    return {**{k: v for k, v in first.items() if k not in NOT_INHERITED}, **options, "reflow": str(path)}


def attach_first_flow(density: Density, options: dict[str, Any], spec: DataSpec) -> None:
    """Give the density the flow of the run that `reflow` names, if it names one.

    Raises ValueError if that run has other data or another network.
    """
    if options.get("reflow") is None:
        return
    first = runs.load(options["reflow"])
    if first.spec != spec:
        raise ValueError(f"reflow={options['reflow']} was trained on other data: train on the same, with the same seed")
    for part in density.modules():
        if isinstance(part, RectifiedFlow):
            part.rectify(first.density)
