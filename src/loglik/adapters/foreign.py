"""What densities of other libraries share: checks of events and contexts, preprocessing, and the fit to data."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.checks import check_complete
from loglik.data.limits import first_line
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.flows import Flow
from loglik.inputs import as_tensor
from loglik.memory import is_out_of_memory
from loglik.transforms import Dequantize, Reshape, Transform
from loglik.transforms.transform import zeros

__all__ = ["Foreign", "Linear", "fitted_to", "linear_of", "preprocessed", "refused", "tried"]


class Foreign(Density):
    """A density of another library: one event shape, and real numbers unless it is `discrete`.

    Args:
        library: its name, for errors.
        event_shape: the shape of one example.
        conditional: whether it needs a context.
        dtype: of events and log-probabilities.
    """

    anchor: Tensor

    def __init__(
        self,
        library: str,
        event_shape: tuple[int, ...],
        *,
        conditional: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.library, self.event_shape, self.conditional = library, tuple(event_shape), conditional
        self.register_buffer("anchor", torch.zeros((), dtype=dtype), persistent=False)  # has the device and dtype

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        shape = tuple(x.shape[1:])
        if shape != self.event_shape:
            raise ValueError(f"this {self.library} model is of events of shape {self.event_shape}, got {shape}")
        check_complete(x)
        self.check_context(context)
        if context is not None and self.conditional and len(context) not in (1, len(x)):
            raise ValueError(f"pass one row of context for each example: got {len(context)} for {len(x)}")

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        if self.conditional and context is None:
            raise ValueError(
                f"this {self.library} model is p(x | context): pass a context, one row for each example; in data it is "
                'the label, or the inputs beside target="COLUMN"'
            )


class Linear(Transform):
    r"""Map $z = A x + b$ of vectors, with $\log\det = \log \lvert \det A \rvert$.

    Raises ValueError for a matrix that is not square, or singular.
    """

    matrix: Tensor
    shift: Tensor
    inverse: Tensor
    log_det: Tensor

    def __init__(self, matrix: Float[Tensor, "D D"], shift: Float[Tensor, " D"]) -> None:
        super().__init__()
        if matrix.shape[0] != matrix.shape[1]:
            outputs, inputs = matrix.shape
            raise ValueError(
                f"a map from {inputs} to {outputs} dimensions has no density in the units of the data: keep {inputs}"
            )
        log_det = torch.linalg.slogdet(matrix.double()).logabsdet
        if not log_det.isfinite():
            raise ValueError("this linear map is singular, so that it has no inverse: leave constant columns out")
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)
        self.register_buffer("inverse", torch.linalg.inv(matrix.double()).to(matrix.dtype))
        self.register_buffer("log_det", log_det.to(matrix.dtype))

    def encode(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        z = x.to(self.matrix.dtype) @ self.matrix.T + self.shift
        return z, zeros(z) + self.log_det

    def decode(self, z: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, "B D"]:
        return (z.to(self.matrix.dtype) - self.shift) @ self.inverse.T


class _Affine(Transform):
    r"""Map $z = (x - m) / s$ with constants that broadcast to the event, counted in each dimension."""

    columnwise = True
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        if (scale == 0).any() or not (mean.isfinite().all() and scale.isfinite().all()):
            raise ValueError("mean and scale must be finite, and no scale 0")
        for name, value in (("mean", mean), ("scale", scale)):
            try:
                self.register_buffer(name, value.broadcast_to(event_shape).clone())
            except RuntimeError:
                raise ValueError(
                    f"{name} of shape {tuple(value.shape)} does not broadcast to events of shape {event_shape}"
                ) from None

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        z = (x.to(self.mean.dtype) - self.mean) / self.scale
        return z, zeros(z) - self.scale.abs().log().sum()

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return z.to(self.mean.dtype) * self.scale + self.mean


def preprocessed(
    density: Density, *, mean: Any = None, scale: Any = None, levels: int | None = None, transform: Any = None
) -> Density:
    r"""Return the density of x where `density` is that of preprocessed data; every log-determinant is counted.

    x is dequantized if `levels` is given, then standardised, $z = (v - \text{mean}) / \text{scale}$, or transformed:

    $\log p(x) = \log p_z(z) + \log \lvert \det \partial z / \partial x \rvert$,

    and with levels a sample of a lower bound of log P(x).

    Args:
        density: of z.
        mean, scale: numbers, or arrays that broadcast to an event; 0 and 1 if None.
        levels: integers 0 ... levels-1 in every dimension become v = x + u with uniform u: see `Dequantize`.
        transform: a fitted scaler or PCA of scikit-learn, or a `Transform`, instead of mean and scale.

    Raises ValueError where the shapes do not fit, and for a transform without a known log-determinant.
    """
    if levels is not None and (not isinstance(levels, int) or levels < 2):
        raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
    steps: list[Transform] = [] if levels is None else [Dequantize(levels)]
    dtype = next((t.dtype for t in (*density.parameters(), *density.buffers()) if t.is_floating_point()), torch.float32)
    if transform is not None:
        if mean is not None or scale is not None:
            raise ValueError("give mean= and scale=, or transform=, not both")
        steps.append(transform if isinstance(transform, Transform) else linear_of(transform, dtype))
    elif mean is not None or scale is not None:
        centre, unit = (_numbers(value) for value in (0.0 if mean is None else mean, 1.0 if scale is None else scale))
        steps.append(_Affine(centre.to(dtype), unit.to(dtype), density.event_shape))
    return Flow(steps, density).to(density.device) if steps else density


def _numbers(value: Any) -> Tensor:
    """Return numbers in float64. Raises ValueError for anything else."""
    tensor = value.detach().cpu() if isinstance(value, Tensor) else as_tensor(value, None)
    return tensor.double()


LINEAR = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "PCA")


def linear_of(transformer: Any, dtype: torch.dtype = torch.float64) -> Linear:
    """Return a fitted scaler or PCA of scikit-learn as a linear map with its log-determinant.

    Raises ValueError for another transformer, an unfitted one, and one that leaves dimensions out or clips.
    """
    import numpy as np
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(transformer).__name__
    if name not in LINEAR or not type(transformer).__module__.startswith("sklearn."):
        raise ValueError(
            f"{name} has no log-determinant that is known here: use one of {', '.join(LINEAR)}, or pass a "
            "loglik.transforms.Transform"
        )
    try:
        check_is_fitted(transformer)
    except NotFittedError:
        raise ValueError(f"{name} is not fitted: call its fit(x) first") from None
    if getattr(transformer, "clip", False):
        raise ValueError("MinMaxScaler(clip=True) is not invertible: use clip=False")
    rows = np.concatenate([np.zeros((1, transformer.n_features_in_)), np.eye(transformer.n_features_in_)])
    images = np.asarray(type(transformer).transform(transformer, rows), dtype=np.float64)
    shift = torch.as_tensor(images[0])
    return Linear((torch.as_tensor(images[1:]) - shift).T.contiguous().to(dtype), shift.to(dtype))


def fitted_to(density: Density, spec: DataSpec, *, dequantize: bool = False) -> Density:
    """Return a density for data of a spec: reshaped where it is of their flattened events, dequantized if requested.

    Raises ValueError where the shapes differ, and where a density of real numbers would score integers.
    """
    if density.event == "y":
        return density
    steps: list[Transform] = []
    if dequantize and any(spec.discrete_dims):
        if spec.columns:
            steps.append(Dequantize(discrete=spec.discrete_dims, categories=spec.categories))
        else:
            steps.append(Dequantize(spec.levels))
    if density.event_shape != spec.event_shape:
        if density.event_shape != (math.prod(spec.event_shape),):
            raise ValueError(
                f"the model is a density of events of shape {density.event_shape}, and the data are {spec.describe()}"
            )
        steps.append(Reshape(spec.event_shape, density.event_shape))
    if any(spec.discrete_dims) and not dequantize and _of_real_numbers(density):
        count, dims = sum(spec.discrete_dims), len(spec.discrete_dims)
        which = f"{spec.levels} levels" if spec.levels else f"integers or categories in {count} of {dims} columns"
        raise ValueError(
            f"the data have {which}, and the model is a density of real numbers: pass dequantize=True, which adds "
            "uniform noise to them (a lower bound), or dequantize in the model with levels="
        )
    return Flow(steps, density).to(density.device) if steps else density


def _of_real_numbers(density: Density) -> bool:
    """Return whether a density of another library, behind a flow's transforms, would score integers as real numbers."""
    while isinstance(density, Flow):
        if any(transform.bound is Bound.LOWER for transform in density.transforms):
            return False
        density = density.base
    return isinstance(density, Foreign) and not density.discrete


@torch.no_grad()
def tried(model: nn.Module, call: Callable[[Any], Any]) -> Any:
    """Return what a call of a copy of a module in evaluation mode gives; None where it fails.

    A copy, since some layers take their initial weights from the first batch that they see.
    """
    own, state = deepcopy(model).eval(), torch.get_rng_state()
    try:
        return call(own)
    except Exception:  # another library's module may raise anything
        return None
    finally:
        torch.set_rng_state(state)


def refused(library: str, error: Exception) -> ValueError:
    """Return a library's error as one line; raise it again if memory ran out."""
    if is_out_of_memory(error):
        raise error
    return ValueError(f"{library} refuses these data or their context: {first_line(error)}")
