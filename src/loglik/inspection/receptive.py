r"""Receptive fields: what part of the input a unit of each layer sees, by the formula and as gradients show it.

B batch, C channels, H W image. Positions count from 0; a field is a first and a last position along each input axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loglik.inspection.bounds import Bounds, Window, windows
from loglik.inspection.layers import device_of, evaluating, first_tensor, hooked, kind_of
from loglik.inspection.tracker import Tracker

__all__ = ["ReceptiveField", "effective_field", "measured_fields", "receptive_fields"]

Interval = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """What a layer sees; a pair (or one value for a sequence) along the axes of the input.

    Attributes:
        layer, kind: the module's name and what it is.
        shape: of its output, without the batch.
        size: the field by the formula, on an input without border; of a layer that mixes all positions, the input's.
        jump: the distance between the fields of neighbouring units, None where units have no places of their own.
        start: where the field of the first unit starts, negative in the padding; None as above.
        unit: the middle unit of the output, as an index without the batch.
        seen: the first and last position that this unit depends on in this input; None where it sees nothing.
        whole: every unit sees every position.
        assumed: operations on the way without a rule, which were taken to mix everything.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    jump: tuple[int, ...] | None
    start: tuple[int, ...] | None
    unit: tuple[int, ...]
    seen: tuple[Interval, ...] | None
    whole: bool
    assumed: tuple[str, ...] = ()

    @property
    def clipped(self) -> bool:
        """Whether the border of the input cuts the middle unit's field."""
        lengths = None if self.seen is None else tuple(last - first + 1 for first, last in self.seen)
        return self.jump is None or lengths != self.size


def receptive_fields(
    network: nn.Module, x: Shaped[Tensor, "B ..."], *, axes: Sequence[int] | None = None
) -> list[ReceptiveField]:
    r"""The receptive field of every layer of a network, in the order in which they run.

    $RF_l = RF_{l-1} + d_l (k_l - 1) \prod_{i<l} s_i$ for kernel k, stride s and dilation d; where branches meet, the
    field is the least that holds those of all branches. Any network that runs will do: the fields are carried through
    its operations, and not read from its modules.

    Args:
        network: from x to anything; it runs once, in evaluation mode.
        x: an input; only the first example is used.
        axes: the dimensions of x that are places; by default all from the third on, (2, 3) of (B, C, H, W), and 1 for
            rows (B, D). Pass (1,) for a sequence of vectors (B, T, E).

    Sources: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks"; the notes,
    "receptive field".

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, dilation=2))
    >>> [field.size for field in receptive_fields(net, torch.zeros(1, 1, 32, 32))]
    [(3, 3), (4, 4), (12, 12)]
    """
    x = x[:1].detach().clone().cpu()
    axes = _axes(x, axes)
    if device_of(network).type != "cpu":
        network = copy.deepcopy(network).cpu()  # bounds are carried on the CPU
    tracker = Tracker()
    fields: list[ReceptiveField] = []
    recorded: dict[int, tuple[Tensor, Bounds]] = {}

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        bounds = tracker.get(out)
        if out is None or bounds is None or out.dim() < 2:
            return
        if id(out) in recorded and recorded[id(out)][1] is bounds:
            return  # a container gives what its last layer gave
        recorded[id(out)] = (out, bounds)
        fields.append(_field(name, module, out, bounds, [x.shape[a] for a in axes], tracker.unknown))

    with torch.no_grad(), evaluating(network), hooked(network, after=after), tracker:
        start = Bounds.of_input(x, axes)
        tracker.put(x, start)
        recorded[id(x)] = (x, start)
        network(x)
    return fields


def _field(
    name: str, module: nn.Module, out: Tensor, bounds: Bounds, lengths: Sequence[int], unknown: Iterable[str]
) -> ReceptiveField:
    unit = tuple(n // 2 for n in out.shape[1:])
    pairs = bounds.intervals()
    at = [(-int(low[0][unit]), int(high[0][unit])) for low, high in pairs]
    whole = all(
        -int(low.min()) <= 0 and int(high.min()) >= n - 1 for (low, high), n in zip(pairs, lengths, strict=True)
    )
    window: tuple[Window, ...] | None = None if whole and bounds.windows is None else bounds.windows
    if window is None:  # no formula: the widest field of any unit
        sizes = tuple(max(0, int((low.long() + high.long()).max()) + 1) for low, high in pairs)
    else:
        sizes = tuple(w.size for w in window)
    return ReceptiveField(
        layer=name,
        kind=kind_of(module),
        shape=tuple(out.shape[1:]),
        size=sizes,
        jump=None if window is None else tuple(w.jump for w in window),
        start=None if window is None else tuple(w.start for w in window),
        unit=unit,
        seen=None if any(first > last for first, last in at) else tuple(at),
        whole=whole,
        assumed=tuple(sorted(unknown)),
    )


def measured_fields(
    network: nn.Module,
    x: Shaped[Tensor, "B ..."],
    *,
    axes: Sequence[int] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> dict[str, tuple[Interval, ...] | None]:
    r"""The field of each layer's middle unit by gradients: the hull of $\{p : \partial h_l / \partial x_p \ne 0\}$.

    No gradient may vanish by chance, so they are taken in a copy of the network in float64 with random positive
    weights, on random positive inputs, with means in the place of maximum poolings, and joined over several draws.
    Comparable with `ReceptiveField.seen`, border and all.

    Args:
        network: from floats to anything.
        x: an input, which gives the shape alone.
        axes: as for `receptive_fields`.
        draws: of weights and inputs.

    Returns for each layer the first and last position along each axis; None where it sees nothing.
    """
    axes = _axes(x, axes)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Interval] | None] = {}
    for _ in range(draws):
        model = _positive(network, generator)
        probe = torch.rand(1, *x.shape[1:], generator=generator, dtype=torch.float64).requires_grad_()
        outputs: dict[str, Tensor] = {}

        def after(name: str, module: nn.Module, inputs: Any, output: Any, outputs: Any = outputs) -> None:
            out = first_tensor(output)
            if out is not None and out.requires_grad and out.dim() >= 2:
                outputs[name] = out.clone()  # before anything is added to it in place

        with evaluating(model), hooked(model, after=after), _MeanForMaximum():
            model(probe)
        for name, out in outputs.items():
            unit = out[0][tuple(n // 2 for n in out.shape[1:])]
            (gradient,) = torch.autograd.grad(unit, probe, retain_graph=True, allow_unused=True)
            hull = None if gradient is None else _hull(gradient != 0, axes)
            found[name] = _around(found.get(name), hull)
    return {name: None if hull is None else tuple(hull) for name, hull in found.items()}


def effective_field(
    network: nn.Module, x: Float[Tensor, "B C H W"], layer: str, *, draws: int = 1, seed: int = 0
) -> Float[Tensor, "H W"]:
    r"""How much each pixel moves a layer's middle unit: $\mathbb E\,\lvert \partial h_l / \partial x_p \rvert$.

    The mean over examples, draws of random signs over the layer's channels, and the input's channels. A unit sees its
    field unevenly: in a deep stack the middle weighs most, about as a Gaussian.

    Args:
        network: as it is, trained or not.
        x: examples, as the network takes them.
        layer: a module's name.

    Raises ValueError where the network has no such layer, or it does not depend on x.

    Source: Luo et al. 2016, "Understanding the effective receptive field in deep convolutional neural networks".
    """
    x = x.detach().clone().requires_grad_()
    caught: list[Tensor] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name == layer and out is not None:
            caught.append(out.clone())

    with evaluating(network, seed), hooked(network, after=after), torch.enable_grad():
        network(x)
    if not caught or not caught[-1].requires_grad:
        raise ValueError(f"no layer {layer!r} between the input and the output: `receptive_fields` names them")
    out = caught[-1]
    # (B, C, places...): the middle place, all channels; tokens (B, T, E) have their channels last
    middle = out
    for n in out.shape[2:]:
        middle = middle[:, :, n // 2]
    if out.dim() == 3:
        middle = out[:, out.shape[1] // 2]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(x.shape[-2:])
    for _ in range(draws):
        signs = torch.randint(0, 2, middle.shape, generator=generator).to(middle.device) * 2 - 1
        (gradient,) = torch.autograd.grad((middle * signs).sum(), x, retain_graph=True)
        total += gradient.abs().mean((0, 1)).float().cpu()
    return total / draws


class _MeanForMaximum(TorchFunctionMode):
    """The mean of each window where the network takes its maximum, so that each tap has a gradient."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not name.startswith(("max_pool", "boolean_dispatch", "adaptive_max_pool")) or not name[-2:-1].isdigit():
            return func(*args, **(kwargs or {}))
        if name.startswith("adaptive"):
            return getattr(nn.functional, name.replace("max", "avg"))(*args[:2])
        n = int(name[-2])
        given = dict(zip(("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), args, strict=False))
        given |= kwargs or {}
        outputs = func(*args, **(kwargs or {})).shape[-n:]
        kernel = _tuple(given["kernel_size"], n)
        stride = _tuple(given.get("stride") or kernel, n)
        padding, dilation = _tuple(given.get("padding", 0), n), _tuple(given.get("dilation", 1), n)
        taps = windows(given["input"], kernel, stride, padding, dilation, fill=0.0, outputs=outputs)
        return taps.flatten(-n).mean(-1)


def _tuple(value: Any, n: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * (n // len(values))


def _positive(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in float64 with random positive weights, in the scale of the number of a unit's inputs."""
    model = copy.deepcopy(network).cpu().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            scale = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((0.5 + drawn) / scale)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1.0)
    return model


def _hull(mask: Tensor, axes: Sequence[int]) -> list[Interval] | None:
    hull = []
    for axis in axes:
        places = mask.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        if not len(places):
            return None
        hull.append((int(places[0]), int(places[-1])))
    return hull


def _around(a: list[Interval] | None, b: list[Interval] | None) -> list[Interval] | None:
    if a is None or b is None:
        return a or b
    return [(min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True)]


def _axes(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    if axes is None:
        return list(range(2, x.dim())) if x.dim() > 2 else [1]
    bad = [a for a in axes if not 1 <= a < x.dim()]
    if bad:
        raise ValueError(f"axes must lie in 1 ... {x.dim() - 1} for an input of shape {tuple(x.shape)}, got {bad[0]}")
    return list(axes)
