r"""Gradient flow: how the gradient of the loss and the Jacobians of the layers change over depth.

$\frac{\partial L}{\partial h_l} =
\frac{\partial L}{\partial h_n} \prod_{i=l}^{n-1} \frac{\partial h_{i+1}}{\partial h_i}$: if the singular values of
these Jacobians are below 1, the product vanishes with depth; if they are above 1, it explodes (Pascanu et al. 2013,
section 2.1; Glorot and Bengio 2010; the notes, "vanishing gradients").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.inspection.layers import evaluating, hooked
from loglik.inspection.signal_path import Layer, Recorder, path_layers
from loglik.inspection.singular_values import Spectrum, singular_values

__all__ = ["GradientFlow", "LayerGradient", "gradient_flow"]

Verdict = Literal["healthy", "vanishing", "exploding", "blocked", "too shallow", "not measured"]
MIN_DEPTH = 3
# with one learning rate, the first layer then needs 100 steps for what the last does in one, or the reverse
MAX_CHANGE = 100.0


@dataclass(frozen=True)
class LayerGradient:
    """The gradients of one layer.

    On the path that all of the signal goes through, a layer is a module with weights and the activation, norm and
    pooling that follow it. If there is no such path, a layer is a module with weights.

    Attributes:
        layer: the name of the module.
        kind: its type, and what follows it.
        depth: the number of layers on the longest path to its output, including itself.
        output_norm: the norm of the gradient of the loss with respect to its output.
        parameter_norm: the norm of the gradient of the loss with respect to its weights.
        jacobian: of its output with respect to the output of the layer before, or to its input, at one example.
    """

    layer: str
    kind: str
    depth: int
    output_norm: float
    parameter_norm: float
    jacobian: Spectrum | None


@dataclass(frozen=True)
class GradientFlow:
    """Gradients over depth, from the input to the loss.

    Attributes:
        layers: in the order of the forward pass.
        factor: ρ, the geometric mean of the factor by which the gradient changes from a layer to the one before it.
        total: $\\rho^{n-1}$, the change over the depth n from the last layer to the first.
        verdict: `vanishing` if the total is below 1/100, `exploding` if it is above 100, else `healthy`; `blocked` if
            the gradient of some layer is exactly zero, `too shallow` below a depth of 3, `not measured` if there is
            nothing to measure.
        reason: the verdict in a sentence.
    """

    layers: list[LayerGradient]
    factor: float
    total: float
    verdict: Verdict
    reason: str


def gradient_flow(
    network: nn.Module,
    loss: Callable[[], Float[Tensor, ""]],
    *,
    source: Tensor | None = None,
    first: str | None = None,
    jacobians: bool = True,
    seed: int = 0,
) -> GradientFlow:
    r"""Measure gradient norms and Jacobians over depth, and whether gradients vanish or explode.

    The layers are the outputs that every path from the source to the loss goes through, so a residual network has its
    blocks as layers, and not the insides of a branch. If there are fewer than 3, they are all modules with weights.
    The factor per layer is $\rho = e^{-b}$, where b is the slope of the line fitted to
    $\log \lVert \partial L / \partial h_l \rVert$ over the depth l. Parallel layers count once in the depth.

    Gradients vanish if $\rho^{n-1} < 1/100$ and explode if $\rho^{n-1} > 100$. With one learning rate, the first layer
    then needs 100 steps for a change that the last layer makes in one, or the reverse. The rule depends on the depth
    of the network: 3 layers that halve the gradient train well, 10 do not.

    Args:
        network: the module whose layers are followed.
        loss: computes the loss by running the network, in evaluation mode.
        source: a float tensor that `loss` starts from and that needs gradients; the output of `first` if None.
        first: the layer that reads the data; the first that runs if None.
        jacobians: whether to compute the singular values too, at the first example.

    References: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks"; Glorot and
    Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    record = Recorder()
    frozen = [p for p in network.parameters() if not p.requires_grad]
    # the matrix products of attention have the second derivatives that the Lanczos iteration needs
    products = sdpa_kernel(SDPBackend.MATH)
    with evaluating(network, seed), hooked(network, after=record.after), products, torch.enable_grad():
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            value = loss()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        layers = path_layers(network, record, value, source=source, first=first)
        gradients = [_layer_gradient(layer, value, jacobians) for layer in layers]
    return _verdict(gradients, {output.name: output.module for output in record.outputs})


def _layer_gradient(layer: Layer, loss: Tensor, jacobians: bool) -> LayerGradient:
    targets = [layer.output, *layer.parameters]
    gradients = torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
    norms = [0.0 if g is None else float(g.cpu().double().norm()) for g in gradients]
    spectrum, before = None, layer.before
    comparable = before is not None and before.requires_grad and before.dim() > 1 and layer.output.dim() > 1
    if jacobians and before is not None and comparable and len(before) == len(layer.output):
        spectrum = singular_values(layer.output, before)
    return LayerGradient(layer.name, layer.kind, layer.depth, norms[0], math.hypot(*norms[1:]), spectrum)


def _verdict(layers: list[LayerGradient], modules: dict[str, nn.Module]) -> GradientFlow:
    r"""Fit $\log \lVert \partial L / \partial h_l \rVert$ over depth, and compare $\rho^{n-1}$ with 1/100 and 100."""
    norms = [layer.output_norm for layer in layers]
    depth = torch.tensor([layer.depth for layer in layers], dtype=torch.float64)
    n = int(depth.max() - depth.min()) + 1 if layers else 0
    if n < MIN_DEPTH:
        return GradientFlow(layers, 1.0, 1.0, "too shallow", f"a depth of {n} is too small to fit a rate")
    if not all(norms):
        zero = [name for name, module in modules.items() if _has_zero_weights(module)]
        cause = f", because all weights of {zero[-1]} are 0, as some layers start" if zero else ""
        first = next(layer.layer for layer in layers if not layer.output_norm)
        return GradientFlow(layers, 0.0, 0.0, "blocked", f"no gradient reaches {first}{cause}")
    y = torch.tensor(norms, dtype=torch.float64).log()
    centred = depth - depth.mean()
    slope = float((centred * y).sum() / centred.square().sum())
    factor, total = math.exp(-slope), math.exp(-slope * (n - 1))
    verdict: Verdict = "vanishing" if total < 1 / MAX_CHANGE else "exploding" if total > MAX_CHANGE else "healthy"
    reason = (
        f"the gradient changes by a factor of {factor:.3g} per layer towards the input, and by {total:.2g} over "
        f"a depth of {n} ({'within' if verdict == 'healthy' else 'outside'} 1/{MAX_CHANGE:.0f} to {MAX_CHANGE:.0f})"
    )
    return GradientFlow(layers, factor, total, verdict, reason)


def _has_zero_weights(module: nn.Module) -> bool:
    weights = [p for p in module.parameters(recurse=False) if p.dim() > 1]
    return bool(weights) and not any(bool(w.any()) for w in weights)
