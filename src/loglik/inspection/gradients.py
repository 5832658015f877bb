r"""Gradient flow: how the gradient of the loss and the Jacobians of the layers change over depth.

$\frac{\partial L}{\partial h_l} =
\frac{\partial L}{\partial h_n} \prod_{i=l}^{n-1} \frac{\partial h_{i+1}}{\partial h_i}$: where the singular values of
these Jacobians lie below 1 the product falls to 0 with depth, where they lie above 1 it grows without limit (Pascanu
et al. 2013, section 2.1; Glorot and Bengio 2010; the notes, "vanishing gradients").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.inspection.layers import WHOLE, evaluating, first_tensor, hooked, kind_of

__all__ = ["GradientFlow", "LayerGradient", "Spectrum", "gradient_flow", "singular_values"]

Verdict = Literal["healthy", "vanishing", "exploding", "blocked", "too shallow"]
NO_LAYER = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)  # these pass gradients on as they are
FAR = 1000.0  # the change of the gradient over the whole depth that has a name


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian: the largest, the root mean square, the smallest (None where only estimated)."""

    largest: float
    rms: float
    smallest: float | None


@dataclass(frozen=True)
class LayerGradient:
    """One layer of the path that all of the signal takes, or, where there is none, one layer with weights.

    Attributes:
        layer, kind: the module's name and what it is.
        output_norm: of the gradient of the loss with respect to its output.
        parameter_norm: of that with respect to its weights; None where it has none.
        jacobian: of its output with respect to the output of the layer before, or to its input; one example's.
    """

    layer: str
    kind: str
    output_norm: float
    parameter_norm: float | None
    jacobian: Spectrum | None


@dataclass(frozen=True)
class GradientFlow:
    """Gradients over depth, from the input to the loss.

    Attributes:
        layers: in the order of the forward pass.
        factor: ρ, by which the gradient changes from a layer to the one before it, in the geometric mean.
        total: $\\rho^{n-1}$, the change over all n layers.
        verdict: `vanishing` where the total is below 1/1000, `exploding` where it is above 1000, else `healthy`;
            `blocked` where the gradient of some layer is exactly zero, `too shallow` with fewer than 3 layers.
        reason: the verdict in a sentence.
    """

    layers: list[LayerGradient]
    factor: float
    total: float
    verdict: Verdict
    reason: str


@dataclass
class _Seen:
    name: str
    module: nn.Module
    inputs: Tensor | None
    output: Tensor
    node: Any


def gradient_flow(
    network: nn.Module,
    loss: Callable[[], Float[Tensor, ""]],
    *,
    source: Tensor | None = None,
    jacobians: bool = True,
    seed: int = 0,
) -> GradientFlow:
    r"""Gradient norms and Jacobians over depth, and whether gradients vanish or explode.

    The layers are the outputs that every path from the source to the loss goes through (so a residual network has its
    blocks as layers, and not the insides of a branch); where there are fewer than 3, all layers with weights. The
    factor a layer is $\rho = e^{-b}$ with b the slope of the line fitted to $\log \lVert \partial L / \partial h_l
    \rVert$ over l. The rule: vanishing where $\rho^{n-1} < 1/1000$, exploding where $\rho^{n-1} > 1000$.

    Args:
        network: the module whose layers are followed.
        loss: computes the loss by running the network, in evaluation mode.
        source: a float tensor that `loss` starts from and that needs gradients; the first layer's output if None.
        jacobians: also the singular values, of the first example.

    Sources: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks"; Glorot and
    Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    seen: list[_Seen] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        if out is not None and out.requires_grad and (not seen or out.grad_fn is not seen[-1].node):
            seen.append(_Seen(name, module, first_tensor(inputs), out, out.grad_fn))

    needed = [p for p in network.parameters() if not p.requires_grad]
    # attention by its matrix products, which have the second derivatives that power iteration takes
    with evaluating(network, seed), hooked(network, after=after), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for parameter in needed:
            parameter.requires_grad_(True)
        try:
            value = loss()
        finally:
            for parameter in needed:
                parameter.requires_grad_(False)
        trunk = _trunk(seen, value, source)
        deep = len(trunk) >= 3
        chosen = trunk if deep else [s for s in seen if any(True for _ in s.module.parameters(recurse=False))]
        layers = []
        for i, layer in enumerate(chosen):
            before = (chosen[i - 1].output if i else source) if deep else layer.inputs
            around = any(other.name.startswith(f"{layer.name}.") for other in chosen)  # whose weights are theirs
            layers.append(_layer(layer, before, value, jacobians, weights=not around))
    return _judge(layers, network, seen)


def singular_values(
    output: Float[Tensor, "B ..."], inputs: Float[Tensor, "B ..."], *, exact: int = 256, iterations: int = 24
) -> Spectrum | None:
    r"""Singular values of $J = \partial h_{out} / \partial h_{in}$, of two tensors of one graph, at the first example.

    With at most `exact` outputs J is computed whole. Else the root mean square comes from Gaussian probes,
    $\mathbb E \lVert J^\top v \rVert^2 = \lVert J \rVert_F^2$, and the largest from power iteration on $J J^\top$, from
    below. The root mean square is over $\min(n_{in}, n_{out})$ singular values. None where the one does not depend on
    the other.
    """
    n_out, n_in = output[0].numel(), inputs[0].numel()

    def pull(v: Tensor, create: bool = False) -> Tensor | None:
        full = torch.cat([v.view(1, *output.shape[1:]), torch.zeros_like(output[1:])])
        (g,) = torch.autograd.grad(output, inputs, full, retain_graph=True, create_graph=create, allow_unused=True)
        return None if g is None else g[0].flatten()

    probe = torch.randn(n_out, generator=torch.Generator().manual_seed(0)).to(output)
    if pull(probe) is None:
        return None
    rank = min(n_in, n_out)
    if n_out <= exact:
        rows = [pull(row) for row in torch.eye(n_out, dtype=output.dtype, device=output.device)]
        values = torch.linalg.svdvals(torch.stack([r for r in rows if r is not None]).double())
        return Spectrum(values[0].item(), values.square().sum().div(rank).sqrt().item(), values[-1].item())
    generator = torch.Generator().manual_seed(1)
    probes = [pull(torch.randn(n_out, generator=generator).to(output)) for _ in range(8)]
    square = sum(float(p.double().square().sum()) for p in probes if p is not None) / len(probes)
    # J u as the gradient of the linear map v -> Jᵀv
    v = torch.zeros_like(probe, requires_grad=True)
    pulled = pull(v, create=True)
    u = probes[0]
    largest = 0.0
    for _ in range(iterations):
        if u is None or pulled is None or not pulled.requires_grad or not u.norm() > 0:
            break
        (w,) = torch.autograd.grad(pulled, v, u / u.norm(), retain_graph=True)
        largest = float(w.norm())
        u = pull(w.detach())
    return Spectrum(largest, math.sqrt(square / rank), None)


def _layer(layer: _Seen, before: Tensor | None, value: Tensor, jacobians: bool, *, weights: bool) -> LayerGradient:
    parameters = list(layer.module.parameters()) if weights else []
    gradients = torch.autograd.grad(value, [layer.output, *parameters], retain_graph=True, allow_unused=True)
    norms = [0.0 if g is None else float(g.double().norm()) for g in gradients]
    spectrum = None
    comparable = before is not None and before.requires_grad and before.dim() > 1 and layer.output.dim() > 1
    if jacobians and before is not None and comparable and len(before) == len(layer.output):
        spectrum = singular_values(layer.output, before)
    total = math.sqrt(sum(n * n for n in norms[1:])) if parameters else None
    return LayerGradient(layer.name, kind_of(layer.module), norms[0], total, spectrum)


def _trunk(seen: list[_Seen], value: Tensor, source: Tensor | None) -> list[_Seen]:
    """The outputs that every path of the graph from the source to the loss goes through.

    A node lies on all paths where the paths to it times the paths from it are all the paths.
    """
    if not seen or value.grad_fn is None:
        return []
    order = _topological(value.grad_fn)
    if source is not None and source.requires_grad:
        start = source.grad_fn if source.grad_fn is not None else source.view_as(source).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    else:
        start = seen[0].node
    from_loss: dict[Any, int] = {value.grad_fn: 1}
    for node in order:
        for child in _children(node):
            from_loss[child] = from_loss.get(child, 0) + from_loss.get(node, 0)
    to_source: dict[Any, int] = {}
    for node in reversed(order):
        to_source[node] = 1 if node is start else sum(to_source.get(child, 0) for child in _children(node))
    total = to_source.get(value.grad_fn, 0)
    trunk, nodes = [], set()
    for s in seen:
        on_all = total and from_loss.get(s.node, 0) * to_source.get(s.node, 0) == total
        if on_all and s.node not in nodes and s.name != WHOLE and not isinstance(s.module, NO_LAYER):
            nodes.add(s.node)
            trunk.append(s)
    return trunk


def _children(node: Any) -> list[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _topological(root: Any) -> list[Any]:
    """The nodes of a graph, each before those it leads to."""
    order, done, stack = [], set(), [(root, False)]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node) if child not in done)
    return order[::-1]


def _judge(layers: list[LayerGradient], network: nn.Module, seen: list[_Seen]) -> GradientFlow:
    norms = [layer.output_norm for layer in layers]
    if len(norms) < 3:
        return GradientFlow(layers, 1.0, 1.0, "too shallow", f"{len(norms)} layers have no depth to speak of")
    if not all(norms):
        zero = [s.name for s in seen if _starts_at_zero(s.module)]
        why = f": all weights of {zero[-1]} are 0, as some layers start" if zero else ""
        first = next(layer.layer for layer in layers if not layer.output_norm)
        return GradientFlow(layers, 0.0, 0.0, "blocked", f"no gradient reaches {first}{why}")
    y = torch.tensor(norms, dtype=torch.float64).log()
    depth = torch.arange(len(norms), dtype=torch.float64)
    centred = depth - depth.mean()
    slope = float((centred * y).sum() / centred.square().sum())
    factor, total = math.exp(-slope), math.exp(-slope * (len(norms) - 1))
    verdict: Verdict = "vanishing" if total < 1 / FAR else "exploding" if total > FAR else "healthy"
    reason = (
        f"the gradient changes by {factor:.3g} a layer towards the input, {total:.2g} over {len(norms)} layers "
        f"({'within' if verdict == 'healthy' else 'beyond'} a factor of {FAR:.0f})"
    )
    return GradientFlow(layers, factor, total, verdict, reason)


def _starts_at_zero(module: nn.Module) -> bool:
    weights = [p for p in module.parameters(recurse=False) if p.dim() > 1]
    return bool(weights) and not any(bool(w.any()) for w in weights)
