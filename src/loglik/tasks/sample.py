"""Samples of a density in the units of the data, given labels where the density needs them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from loglik.data.limits import some
from loglik.data.ranges import clamp_to_ranges, outside_ranges
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import with_sampler
from loglik.evaluation.scores import evaluating, labels_in_turn
from loglik.memory import Pieces
from loglik.plots import plot_images, plot_rows
from loglik.runs import Run
from loglik.tasks.condition import sample_given
from loglik.tasks.condition_text import Given
from loglik.tasks.predict import inputs_for

__all__ = ["Samples", "draw", "labels_of", "sample", "samples_of"]

BLOCK_VALUES = 2**17  # in a block of samples, but not less than 64 samples
MAX_BLOCK = 4096
REDRAWS = 16


class Samples:
    """Samples of a density, drawn in blocks while they are iterated, so that memory does not grow with their number.

    Iterating twice gives the same samples. The size of a block depends on the event's size only, and each block has a
    seed of its own: for one seed the samples of full blocks are the same for every n. A block that does not fit in
    memory is halved, and so are all later ones; this changes the samples.

    Rows of a table with a value beyond the range of its column in the training data are drawn again, up to
    `REDRAWS` times; what is then still beyond it becomes the end of the range.

    Args:
        density: of data.
        spec: of the data.
        n: the number of samples.
        seed: of the samples.
        label: the class of all samples; if None, a conditional density draws the classes in turn.
        inputs: of targets given inputs, a row of inputs for each sample.
        beyond: keep values of a table that are beyond the range of the training data.

    Attributes:
        redrawn: the number of rows that were drawn again, when the samples were last iterated.

    Raises ValueError for a label that the density does not know.
    """

    def __init__(
        self,
        density: Density,
        spec: DataSpec,
        n: int,
        *,
        seed: int = 0,
        label: str | None = None,
        inputs: Tensor | None = None,
        beyond: bool = False,
    ) -> None:
        self.density, self.spec, self.n, self.seed = density, spec, n, seed
        self.context = labels_of(density, spec, n, label) if inputs is None else inputs
        self.within = not beyond and any(column.low is not None for column in spec.columns)
        self.redrawn = 0
        self.block = max(64, min(MAX_BLOCK, BLOCK_VALUES // math.prod(density.event_shape)))

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Shaped[Tensor, "B ..."]]:
        self.redrawn = 0
        pieces = Pieces(self._draw, self.density.device)
        for start in range(0, self.n, self.block):
            yield from pieces(slice(start, min(self.n, start + self.block)))

    def tensor(self) -> Shaped[Tensor, "n ..."]:
        """Return all samples in memory, on the CPU."""
        return torch.cat(list(self))

    def plot(self, axes: Any = None, *, columns: tuple[str, ...] = ()) -> Any:
        """Draw the samples, and return matplotlib's axes: images in a grid, rows by one or two columns.

        Args:
            axes: matplotlib's; new ones if None.
            columns: the names of one or two columns of a table, or their numbers x0, x1, ... of an array; the first
                two if empty.

        Raises ValueError for text, and for columns that there are not.
        """
        x, spec = self.tensor(), self.spec
        if spec.kind == "image":
            return plot_images(x.numpy(), spec.levels or 256, axes)
        if spec.kind == "text":
            raise ValueError("samples of text are not plotted: print them with loglik sample")
        names = [column.name for column in spec.columns] or [f"x{d}" for d in range(spec.dims)]
        chosen = columns or tuple(names[:2])
        if len(chosen) > 2 or not set(chosen) <= set(names):
            raise ValueError(f"columns must be one or two of {some(names)}, got {some(chosen)}")
        rows = x.flatten(1).numpy()
        return plot_rows(rows[:, [names.index(name) for name in chosen]], chosen, axes)

    def _draw(self, rows: slice) -> Tensor:
        seed = self.seed if rows.start == 0 else (self.seed * 1_000_003 + rows.start) % 2**63
        with evaluating(self.density, seed) as device:
            context = None if self.context is None or not self.density.conditional else self.context[rows].to(device)
            x = self.density.sample(rows.stop - rows.start, context)
            return (self._redraw(x, context) if self.within else x).cpu()

    def _redraw(self, x: Float[Tensor, "B D"], context: Tensor | None) -> Float[Tensor, "B D"]:
        """Return rows within the ranges of the training data."""
        for attempt in range(REDRAWS):
            out = outside_ranges(x, self.spec).nonzero().squeeze(1)
            if not len(out):
                return x
            self.redrawn += len(out) if attempt == 0 else 0
            x[out] = self.density.sample(len(out), None if context is None else context[out])
        return clamp_to_ranges(x, self.spec)


def samples_of(
    run: Run,
    n: int | None = None,
    *,
    label: str | None = None,
    inputs: Any = None,
    seed: int = 0,
    beyond: bool = False,
    **sampler: Any,
) -> Samples:
    """Return n samples of a run's density, in the units of the data, which are drawn when they are iterated.

    Args:
        run: the run.
        n: the number of samples, 64 by default; with `inputs`, of each of their rows, 1 by default.
        label: the class of all samples; if None, a conditional density draws the classes in turn.
        inputs: of targets given inputs, the data whose rows are the inputs, as of `predict`.
        seed: of the samples.
        beyond: keep values of a table that are beyond the range of the training data.
        **sampler: of a diffusion: settings of `Sampler`, such as `method`, `steps`, `until` and `guidance`.

    Raises ValueError for a classifier, for an unknown label, and for sampler settings where there is no diffusion.
    """
    density = run.density
    if density.event == "y":
        raise ValueError(
            f"{run.path or 'this run'} is a classifier, p(label | data): it has no data to draw; use another family"
        )
    if sampler:
        density = with_sampler(density, **sampler)
    if inputs is None:
        return Samples(density, run.spec, n or 64, seed=seed, label=label, beyond=beyond)
    if not run.spec.inputs:
        raise ValueError(f"{run.path or 'this run'} has no inputs: leave inputs= out")
    rows = inputs_for(run, inputs).split("all").tensor().repeat_interleave(n or 1, 0)
    return Samples(density, run.spec, len(rows), seed=seed, inputs=rows)


def sample(
    run: Run,
    n: int | None = None,
    *,
    given: Given | None = None,
    label: str | None = None,
    inputs: Any = None,
    seed: int = 0,
    beyond: bool = False,
    **sampler: Any,
) -> Shaped[Tensor, "n ..."]:
    """Draw n samples from a run's density, in the units of the data, on the CPU; arguments as of `samples_of`.

    `given` has conditions on the columns of a table, such as `{"carat": (1, 2), "cut": "Ideal"}`: see `sample_given`,
    which also says how many independent samples they are worth.
    """
    if given:
        if sampler:
            raise ValueError("given= does not go with the settings of a diffusion's sampler")
        return sample_given(run, n or 64, given, seed=seed, label=label).x
    return samples_of(run, n, label=label, inputs=inputs, seed=seed, beyond=beyond, **sampler).tensor()


def draw(density: Density, spec: DataSpec, n: int, *, seed: int, label: str | None = None) -> Shaped[Tensor, "n ..."]:
    """Draw n samples on the CPU, given the label or the classes in turn where the density is conditional.

    Raises ValueError for a label that the density does not know.
    """
    return Samples(density, spec, n, seed=seed, label=label).tensor()


def labels_of(density: Density, spec: DataSpec, n: int, label: str | None) -> Int64[Tensor, " n"] | None:
    """Return the context of n samples: the label, or the classes in turn; None for an unconditional density.

    Raises ValueError for a label that the density does not know.
    """
    if spec.inputs and density.conditional:
        raise ValueError("this density is p(targets | inputs): pass inputs=DATA, whose rows are the inputs")
    if not density.conditional:
        if label is not None:
            raise ValueError("this density is not conditional: train one with conditional=True to draw from a label")
        return None
    if label is None:
        return labels_in_turn(spec, n)
    if label not in spec.classes:
        raise ValueError(f"no class {label!r}: the classes are {', '.join(spec.classes)}")
    return torch.full((n,), spec.classes.index(label))
