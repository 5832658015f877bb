r"""Receptive fields measured by gradients: which pixels change a unit, and how much.

B batch, C channels, H W image. Positions count from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loglik.inspection.bounds import windows
from loglik.inspection.layers import evaluating, first_tensor, hooked
from loglik.inspection.receptive import Interval, spatial_axes

__all__ = ["effective_field", "measured_fields"]


def measured_fields(
    network: nn.Module,
    x: Shaped[Tensor, "B ..."],
    *,
    axes: Sequence[int] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> dict[str, tuple[Interval, ...] | None]:
    r"""Measure the field of each layer's middle unit: the hull of $\{p : \partial h_l / \partial x_p \ne 0\}$.

    No gradient may vanish by chance. They are computed in a float64 copy of the network with random positive weights,
    random positive inputs, and average pooling instead of max pooling, and joined over several draws. The result
    equals `ReceptiveField.seen`, at the border too.

    Args:
        network: maps floats to anything.
        x: an input; only its shape is used.
        axes: as for `receptive_fields`.
        draws: the number of draws of weights and inputs.

    Returns the first and last position along each axis for each layer; None if it depends on nothing.
    """
    axes = spatial_axes(x, axes)
    generator = torch.Generator().manual_seed(seed)
    fields: dict[str, list[Interval] | None] = {}
    for _ in range(draws):
        model = _positive(network, generator)
        probe = torch.rand(1, *x.shape[1:], generator=generator, dtype=torch.float64).requires_grad_()
        outputs: dict[str, Tensor] = {}

        def after(name: str, module: nn.Module, inputs: Any, output: Any, outputs: Any = outputs) -> None:
            out = first_tensor(output)
            if out is not None and out.requires_grad and out.dim() >= 2:
                outputs[name] = out.clone()  # later layers may change it in place

        with evaluating(model), hooked(model, after=after), _MeanForMaximum():
            model(probe)
        for name, out in outputs.items():
            unit = out[0][tuple(n // 2 for n in out.shape[1:])]
            (gradient,) = torch.autograd.grad(unit, probe, retain_graph=True, allow_unused=True)
            hull = None if gradient is None else _hull(gradient != 0, axes)
            fields[name] = _join(fields.get(name), hull)
    return {name: None if hull is None else tuple(hull) for name, hull in fields.items()}


def effective_field(
    network: nn.Module, x: Float[Tensor, "B C H W"], layer: str, *, draws: int = 1, seed: int = 0
) -> Float[Tensor, "H W"]:
    r"""Return the effect of each pixel on a middle unit, $\mathbb E\,\lvert \partial h_l / \partial x_p \rvert$.

    The mean is over examples, draws of random signs for the layer's channels, and the input's channels. In a deep
    stack of convolutions the middle of the field has the largest effect, roughly as a Gaussian.

    Args:
        network: trained or not; its weights are not changed.
        x: examples, as the network accepts them.
        layer: the name of a module.
        draws: the number of draws of signs.

    Raises:
        ValueError: if the network has no such layer, or the layer does not depend on x.

    Reference: Luo et al. 2016, "Understanding the effective receptive field in deep convolutional neural networks".
    """
    x = x.detach().clone().requires_grad_()
    outputs: list[Tensor] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if name == layer and out is not None:
            outputs.append(out.clone())

    with evaluating(network, seed), hooked(network, after=after), torch.enable_grad():
        network(x)
    if not outputs or not outputs[-1].requires_grad:
        raise ValueError(f"no layer {layer!r} between the input and the output: `receptive_fields` lists the layers")
    out = outputs[-1]
    # the middle position, all channels: second in (B, C, H, W), last in tokens (B, T, E)
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
    """Replace max pooling by average pooling, so that each tap has a gradient."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not name.startswith(("max_pool", "boolean_dispatch", "adaptive_max_pool")) or not name[-2:-1].isdigit():
            return func(*args, **(kwargs or {}))
        if name.startswith("adaptive"):
            return getattr(nn.functional, name.replace("max", "avg"))(*args[:2])
        n = int(name[-2])
        options = dict(zip(("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), args, strict=False))
        options |= kwargs or {}
        outputs = func(*args, **(kwargs or {})).shape[-n:]
        kernel = _tuple(options["kernel_size"], n)
        stride = _tuple(options.get("stride") or kernel, n)
        padding, dilation = _tuple(options.get("padding", 0), n), _tuple(options.get("dilation", 1), n)
        taps = windows(options["input"], kernel, stride, padding, dilation, fill=0.0, outputs=outputs)
        return taps.flatten(-n).mean(-1)


def _tuple(value: Any, n: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * (n // len(values))


def _positive(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a float64 copy with random positive weights, divided by the number of a unit's inputs."""
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
    """Return the first and last true position along each axis; None if there is none."""
    hull = []
    for axis in axes:
        positions = mask.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        if not len(positions):
            return None
        hull.append((int(positions[0]), int(positions[-1])))
    return hull


def _join(a: list[Interval] | None, b: list[Interval] | None) -> list[Interval] | None:
    if a is None or b is None:
        return a or b
    return [(min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True)]
