"""A method of a density as a function of tensors alone, its noise included, and the program that torch.export traces.

The batch is the leading dimension of every input and may have any size. The noise has a row for each example, so the
rows of a batch do not depend on each other.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from loglik.autoregressive import AnyOrder, Autoregressive
from loglik.checks import data_checked
from loglik.classification import Classifier
from loglik.density import Density
from loglik.diffusion import Diffusion
from loglik.explicit_noise import ExplicitNoise, NoiseDraw
from loglik.vae import VAE

__all__ = ["PARTS", "Graph", "parts_of", "trace"]

PROBED = (3, 5)  # numbers of rows that show which dimension of a draw belongs to the rows
MAX_ROWS = 2**20
MAX_TOKENS = 256  # that one graph draws, with a network each

Inputs = Mapping[str, Tensor]

PARTS: dict[str, tuple[Callable[[Density], bool], str]] = {
    "log_prob": (lambda density: True, "log p(x | context) in nats, or its bound"),
    "sample": (lambda density: density.event == "x", "a draw of x, in the units of the data"),
    "probabilities": (lambda density: isinstance(density, Classifier), "p(y | x) of each class"),
    "logits": (
        lambda density: isinstance(density, Autoregressive) and not isinstance(density, AnyOrder),
        "the logits of p(x_t | x_<t) at every position t",
    ),
    "encode": (lambda density: isinstance(density, VAE), "the latents of x, without noise"),
    "decode": (lambda density: isinstance(density, VAE), "the expected data given latents z"),
    "denoise": (lambda density: isinstance(density, Diffusion), "the expected data given x_t and its log-SNR"),
}


def parts_of(density: Density) -> list[str]:
    """Return the names of what can be exported of a density."""
    return [name for name, (has, _) in PARTS.items() if has(density)]


class Graph(nn.Module):
    """A part of a density as a module: from the event, the context and the noise, as far as it has them.

    Args:
        density: in evaluation mode, on the CPU.
        part: a key of `PARTS`.
        example: the event and context, with at least five rows; their names are those of the graph's inputs.
        samples: Monte Carlo samples of a bound.

    Attributes:
        noise: the columns of the inputs `normal` and `uniform`; empty for a part without noise.

    Raises ValueError for a random operation whose noise is not of single rows.
    """

    def __init__(self, density: Density, part: str, example: Inputs, *, samples: int = 1) -> None:
        super().__init__()
        self.density, self.part, self.samples, self.names = density, part, samples, tuple(example)
        probes = [self._probe({name: x[:n] for name, x in example.items()}, n) for n in PROBED]
        self.plan = [NoiseDraw.between(first, second, PROBED) for first, second in zip(*probes, strict=True)]
        self.noise = {
            kind: sum(math.prod(draw.rest) for draw in self.plan if draw.kind == kind)
            for kind in sorted({draw.kind for draw in self.plan})
        }

    def _probe(self, example: Inputs, rows: int) -> list[NoiseDraw]:
        with torch.no_grad(), data_checked(), ExplicitNoise() as noise:
            self._call(example, rows)
        return noise.drawn

    def _call(self, values: Inputs, rows: Any) -> Tensor:
        event = self.density.event
        context = values.get("context" if event == "x" else "x")
        if self.part == "log_prob":
            return self.density.log_prob(values[event], context, samples=self.samples)
        if self.part == "sample":
            return self.density.sample(rows, context)
        return CALLS[self.part](self.density, values, context)

    def draw_noise(self, rows: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return noise for a number of rows, by the names of the inputs."""
        draws = {"normal": torch.randn, "uniform": torch.rand}
        return {kind: draws[kind](rows, width, generator=generator) for kind, width in self.noise.items()}

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        z: Tensor | None = None,
        x_t: Tensor | None = None,
        logsnr: Tensor | None = None,
        context: Tensor | None = None,
        normal: Tensor | None = None,
        uniform: Tensor | None = None,
    ) -> Shaped[Tensor, "B ..."]:
        named = {"x": x, "y": y, "z": z, "x_t": x_t, "logsnr": logsnr, "context": context}
        drawn = {"normal": normal, "uniform": uniform}
        values = {name: value for name, value in named.items() if value is not None}
        noise: Any = {kind: value for kind, value in drawn.items() if value is not None}
        rows = next(iter((values | noise).values())).shape[0]
        with data_checked(), ExplicitNoise(noise, self.plan):
            return self._call(values, rows)


def _classes(density: Any, values: Inputs, context: Tensor | None) -> Tensor:
    return density.probabilities(values["x"])


def _denoised(density: Any, values: Inputs, context: Tensor | None) -> Tensor:
    return density.denoiser(values["x_t"], values["logsnr"], context)


CALLS: dict[str, Callable[[Any, Inputs, Tensor | None], Tensor]] = {
    "probabilities": _classes,
    "logits": lambda density, values, context: density.logits(values["x"], context),
    "encode": lambda density, values, context: density.encode(values["x"], context),
    "decode": lambda density, values, context: density.decode(values["z"], context),
    "denoise": _denoised,
}


def trace(graph: Graph, example: Inputs) -> torch.export.ExportedProgram:
    """Return the program of a graph for batches of any size.

    Raises ValueError for a graph without inputs, and for code that depends on the values of its inputs.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    shapes = {name: {0: batch} for name in example}
    with torch.no_grad(), symbolic_len():
        return torch.export.export(graph, (), dict(example), dynamic_shapes=shapes, strict=False)


@contextmanager
def symbolic_len() -> Iterator[None]:
    """Let `len(x)` of a tensor in loglik's modules be the symbol of its size, where Python's own is a constant."""

    def length(x: Any) -> Any:
        return x.shape[0] if isinstance(x, Tensor) else builtins.len(x)

    modules = [module for name, module in sys.modules.items() if name.startswith("loglik.") and module is not None]
    for module in modules:
        module.__dict__["len"] = length
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("len", None)
