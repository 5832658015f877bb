"""export: write a run's density as graphs, and check each by running it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loglik.data.limits import first_line
from loglik.density import Bound, Density, evaluation_mode
from loglik.diffusion import Diffusion, with_sampler
from loglik.export.examples import example
from loglik.export.formats import FORMATS, read, require, write
from loglik.export.graph import MAX_TOKENS, PARTS, Graph, parts_of, trace
from loglik.memory import is_out_of_memory
from loglik.runs import Run
from loglik.version import __version__

__all__ = ["FORMATS", "Exported", "export"]

CHECKED = (1, 3, 7)  # numbers of rows
TRACED = 3
TOLERANCE = 1e-5  # of |a - b| / (1 + |b|)
MAX_STEPS = 64  # of a sampler that is unrolled; with more, unipc makes
FEW_STEPS = 20
DIFFERING = 1e-3  # the share of integers that rounding may change


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: of the file.
        part: what it computes, a key of `PARTS`.
        inputs: the shape of each input, with B rows.
        error: the largest |a - b| / (1 + |b|) between the file's values a and the density's b.
        sampler: of a diffusion's samples: the method and its steps.
    """

    path: Path
    part: str
    inputs: dict[str, str]
    error: float
    sampler: str = ""

    def describe(self) -> str:
        """Return one line."""
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
        rows = ", ".join(map(str, CHECKED))
        by = f" by {self.sampler}" if self.sampler else ""
        return f"{self.path}: {self.part}({shapes}){by}, error {self.error:.1e} in batches of {rows}"


def export(
    run: Run,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    parts: Sequence[str] = (),
    samples: int = 1,
    seed: int = 0,
    **sampler: Any,
) -> list[Exported]:
    """Write a run's density as graphs of any batch size, one file for each part, and check each file by running it.

    A graph is a function of tensors: where the density draws, it has inputs `normal` and `uniform`, whose rows are
    independent N(0, 1) numbers and numbers uniform in [0, 1). Metadata in the file name the inputs, the unit, the
    bound, the data's spec and the version of loglik.

    Args:
        run: the run.
        to: `onnx`, which is checked by onnxruntime, or `torch.export`, an `ExportedProgram`.
        out: a folder, `export` in the run's by default; PART.onnx or PART.pt2 is written there.
        parts: keys of `PARTS`; by default `log_prob` and `sample`, of a classifier `log_prob` and `probabilities`.
        samples: Monte Carlo samples of a bound.
        seed: of the values that the check feeds.
        **sampler: of a diffusion: settings of `Sampler`, such as `method` and `steps`; by default its own, and unipc
            with 20 steps where these are more than 64.

    Raises:
        ValueError: a part that the density does not have, a density whose code depends on the values of its inputs, and
            a file whose values differ from the density's; the file is then removed.
        ImportError: without the packages of the format.
    """
    require(to)
    density = _prepared(run.density, sampler)
    known = parts_of(density)
    chosen = list(parts) or ["log_prob", "sample" if "sample" in known else "probabilities"]
    for part in chosen:
        if part not in known:
            raise ValueError(f"{run.model} has no part {part!r} to export: choose {', '.join(known)}")
    if "log_prob" in chosen:
        _refuse_ode(density)
    if out is None and run.path is None:
        raise ValueError("this run is in memory: pass out, a folder")
    folder = Path(out) if out is not None else Path(run.path or ".") / "export"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the graphs go to a folder, and {folder} is a file: choose another name for out")
    folder.mkdir(parents=True, exist_ok=True)
    with evaluation_mode(density):
        return [
            _export_part(run, density, part, folder / (part + FORMATS[to]), to, samples, seed)
            for part in dict.fromkeys(chosen)
        ]


def _prepared(density: Density, sampler: dict[str, Any]) -> Density:
    """Return a copy on the CPU with these settings, whose samplers have few enough steps for a graph."""
    if sampler:
        density = with_sampler(density, **sampler)
    density = copy.deepcopy(density).cpu()
    for diffusion in diffusions_of(density):
        if diffusion.sampler.method == "adaptive" or diffusion.sampler.steps > MAX_STEPS:
            if sampler:
                raise ValueError(
                    f"a graph has each step of the sampler, at most {MAX_STEPS}, got {diffusion.sampler.method} with "
                    f"{diffusion.sampler.steps}: choose fewer, or export part=denoise and sample outside"
                )
            diffusion.sampler = replace(diffusion.sampler, method="unipc", steps=FEW_STEPS, until=None, eta=0.0)
    return density


def _refuse_ode(density: Density) -> None:
    """Raise ValueError for a diffusion whose likelihood is the ODE's, which has derivatives of the network."""
    for diffusion in diffusions_of(density):
        if diffusion.likelihood.bound is Bound.ESTIMATE:
            use = "export its bound, of with_likelihood(density, 'vlb')" if diffusion.gaussian else "export part=sample"
            raise ValueError(f"log_prob by the ODE has derivatives of the network, which a graph cannot have: {use}")


def diffusions_of(density: Density) -> list[Diffusion]:
    """Return a density's diffusions: itself, a base or a prior."""
    return [part for part in density.modules() if isinstance(part, Diffusion)]


def _export_part(run: Run, density: Density, part: str, path: Path, to: str, samples: int, seed: int) -> Exported:
    tokens = density.event_shape[0] if run.spec.kind == "text" else 0
    if part == "sample" and tokens > MAX_TOKENS:
        raise ValueError(
            f"a graph that samples has a network for each of the {tokens} tokens, at most {MAX_TOKENS}: export "
            "part=logits, and draw token by token"
        )
    inputs = example(density, part, run.spec, seed)
    try:
        graph = Graph(density, part, inputs, samples=samples if part == "log_prob" else 1)
        noise = graph.draw_noise(len(next(iter(inputs.values()), torch.empty(16))), torch.Generator().manual_seed(seed))
        values = inputs | noise
        if not values:
            raise ValueError(f"{part} of {run.model} has no inputs")
        program = trace(graph, {name: value[:TRACED] for name, value in values.items()})
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{part} of this density cannot be traced, as its operations depend on the values of its inputs or are "
            f"derivatives: {first_line(error)}"
        ) from error
    shapes = {
        name: f"({', '.join(['B', *map(str, value.shape[1:])])}) {_dtype(value)}" for name, value in values.items()
    }
    metadata = _metadata(run, density, part, shapes, samples)
    write(program, path, to, metadata)
    try:
        largest = _check(graph, path, to, values)
    except ValueError:
        path.unlink()
        raise
    return Exported(path, part, shapes, largest, metadata.get("loglik.sampler", ""))


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _metadata(run: Run, density: Density, part: str, shapes: dict[str, str], samples: int) -> dict[str, str]:
    """Return what a reader of the file needs, as texts."""
    meaning = {
        "normal": "independent N(0, 1) numbers",
        "uniform": "independent numbers uniform in [0, 1)",
        "context": "labels, or the rows of inputs, as config.yaml codes them",
    }
    drawing = diffusions_of(density) if part == "sample" else []
    described: dict[str, Any] = {
        "loglik": __version__,
        "model": run.model,
        "part": part,
        "computes": PARTS[part][1],
        "unit": "nats" if part == "log_prob" else "",
        "bound": density.bound.value if part == "log_prob" else "",
        "samples": str(samples) if part == "log_prob" and density.bound is not Bound.EXACT else "",
        "discrete": json.dumps(density.discrete),
        "sampler": "; ".join(f"{d.sampler.method}, {d.sampler.steps} steps" for d in drawing),
        "inputs": json.dumps({name: {"shape": s, "meaning": meaning.get(name, "data")} for name, s in shapes.items()}),
        "spec": json.dumps(run.spec.to_dict()),
    }
    return {f"loglik.{name}" if name != "loglik" else name: value for name, value in described.items() if value}


@torch.no_grad()
def _check(graph: Graph, path: Path, to: str, values: dict[str, Tensor]) -> float:
    """Return the largest relative difference between the file's values and the density's. Raises above 1e-5."""
    program, _ = read(path, to)
    worst = 0.0
    for rows in CHECKED:
        inputs = {name: value[-rows:].contiguous() for name, value in values.items()}
        want, got = graph(**inputs), program(inputs)
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ValueError(
                f"{path.name} returned {_dtype(got)} of shape {tuple(got.shape)} for {rows} rows, and the density "
                f"{_dtype(want)} of shape {tuple(want.shape)}"
            )
        worst = max(worst, difference(got, want))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{path.name} differs from the density by {worst:.1e} relative to 1 + |value|, more than {TOLERANCE:g}"
        )
    return worst


def difference(got: Tensor, want: Tensor) -> float:
    """Return the largest |a - b| / (1 + |b|); of integers 0 where rounding changed at most one in a thousand."""
    if not want.is_floating_point():
        return float((got != want).double().mean() > DIFFERING)
    same = (got == want) | (got.isnan() & want.isnan())
    error = (got.double() - want.double()).abs() / (1 + want.double().abs())
    return float(torch.where(same, 0.0, error).max())
