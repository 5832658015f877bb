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

from loglik.inspection.layers import WHOLE, evaluating, first_tensor, hooked, kind_of, owners

__all__ = ["GradientFlow", "LayerGradient", "Spectrum", "gradient_flow", "singular_values"]

Verdict = Literal["healthy", "vanishing", "exploding", "blocked", "too shallow", "not measured"]
NO_LAYER = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)  # these pass gradients on as they are
# with one learning rate for all layers the first needs 100 steps for what the last does in one, or the reverse
FAR = 100.0
PROBES = 16


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian: the largest, the root mean square, the smallest (None where only estimated)."""

    largest: float
    rms: float
    smallest: float | None


@dataclass(frozen=True)
class LayerGradient:
    """One layer of the path that all of the signal takes, or, where there is none, one layer with weights.

    On the path, a layer is a map with weights and the activation, norm and pooling that follow it.

    Attributes:
        layer, kind: the module's name, what it is and what follows it.
        depth: the number of layers on the longest path to its output, itself included.
        output_norm: of the gradient of the loss with respect to its output.
        parameter_norm: of the gradient of the loss with respect to its weights.
        jacobian: of its output with respect to the output of the layer before, or to its input; one example's.
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
        factor: ρ, by which the gradient changes from a layer to the one before it, in the geometric mean.
        total: $\\rho^{n-1}$, the change over the depth n from the last layer to the first.
        verdict: `vanishing` where the total is below 1/100, `exploding` where it is above 100, else `healthy`;
            `blocked` where the gradient of some layer is exactly zero, `too shallow` below a depth of 3, `not measured`
            where there is nothing to measure.
        reason: the verdict in a sentence.
    """

    layers: list[LayerGradient]
    factor: float
    total: float
    verdict: Verdict
    reason: str


@dataclass
class _Seen:
    """An output, and how many modules had run by then."""

    name: str
    module: nn.Module
    inputs: Tensor | None
    output: Tensor
    node: Any
    at: int


@dataclass
class _Ran:
    name: str
    module: nn.Module
    node: Any


@dataclass
class _Layer:
    name: str
    kind: str
    depth: int
    before: Tensor | None
    output: Tensor
    parameters: list[nn.Parameter]


def gradient_flow(
    network: nn.Module,
    loss: Callable[[], Float[Tensor, ""]],
    *,
    source: Tensor | None = None,
    first: str | None = None,
    jacobians: bool = True,
    seed: int = 0,
) -> GradientFlow:
    r"""Gradient norms and Jacobians over depth, and whether gradients vanish or explode.

    The layers are the outputs that every path from the source to the loss goes through (so a residual network has its
    blocks as layers, and not the insides of a branch), each a map with weights together with the activation, norm and
    pooling that follow it; where there are fewer than 3, all maps with weights. The factor per layer is
    $\rho = e^{-b}$ with b the slope of the line fitted to $\log \lVert \partial L / \partial h_l \rVert$ over the depth
    l, in which layers side by side count once.

    The rule: vanishing where $\rho^{n-1} < 1/100$, exploding where $\rho^{n-1} > 100$. With one learning rate, the
    first layer then needs 100 steps for a change that the last layer makes in one, or the reverse. The rule looks at
    the depth the network has: 3 layers that halve the gradient train well, 10 do not.

    Args:
        network: the module whose layers are followed.
        loss: computes the loss by running the network, in evaluation mode.
        source: a float tensor that `loss` starts from and that needs gradients; the output of `first` if None.
        first: the layer that reads the data; the first that runs if None.
        jacobians: also the singular values, of the first example.

    Sources: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks"; Glorot and
    Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    seen: list[_Seen] = []
    ran: list[_Ran] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = first_tensor(output)
        ran.append(_Ran(name, module, None if out is None else out.grad_fn))
        if out is None or not out.requires_grad:
            return
        if seen and out.grad_fn is seen[-1].node:  # a container gives what its last layer gave
            seen[-1].at = len(ran)
        else:
            seen.append(_Seen(name, module, first_tensor(inputs), out, out.grad_fn, len(ran)))

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
        trunk, reached = _trunk(seen, value, source, first)
        owned = owners(network, {_plain(r.name) for r in ran})
        layers = _path(trunk, ran, reached, owned, source)
        if len(layers) < 3:
            maps = _maps(ran, owned)
            layers = [
                _Layer(s.name, kind_of(s.module), depth, s.inputs, s.output, owned[_plain(s.name)])
                for s, depth in _depths([s for s in seen if _plain(s.name) in maps], value)
            ]
        measured = [_measure(layer, value, jacobians) for layer in layers]
    return _judge(measured, network, seen)


def singular_values(
    output: Float[Tensor, "B ..."], inputs: Float[Tensor, "B ..."], *, exact: int = 256, iterations: int = 24
) -> Spectrum | None:
    r"""Singular values of $J = \partial h_{out} / \partial h_{in}$, of two tensors of one graph, at the first example.

    With at most `exact` outputs J is computed whole. Else the root mean square comes from Gaussian probes,
    $\mathbb E \lVert J^\top v \rVert^2 = \lVert J \rVert_F^2$, to some per cent, and the largest from the Lanczos
    iteration on $J J^\top$, from below. The root mean square is over $\min(n_{in}, n_{out})$ singular values. None
    where the one does not depend on the other.

    Source: Golub and Van Loan 2013, "Matrix computations", section 10.1.
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
        values = torch.linalg.svdvals(torch.stack([r for r in rows if r is not None]).cpu().double())
        return Spectrum(values[0].item(), values.square().sum().div(rank).sqrt().item(), values[-1].item())
    generator = torch.Generator().manual_seed(1)
    probes = [pull(torch.randn(n_out, generator=generator).to(output)) for _ in range(PROBES)]
    square = sum(float(p.cpu().double().square().sum()) for p in probes if p is not None) / len(probes)
    # J u as the gradient of the linear map v -> Jᵀv
    v = torch.zeros_like(probe, requires_grad=True)
    pulled = pull(v, create=True)
    if pulled is None or not pulled.requires_grad:
        return Spectrum(0.0, math.sqrt(square / rank), None)

    def both(u: Tensor) -> Tensor:
        """J Jᵀ u."""
        inner = pull(u.to(output))
        (w,) = torch.autograd.grad(pulled, v, inner, retain_graph=True)
        return w.cpu().double()

    return Spectrum(
        math.sqrt(_largest_eigenvalue(both, probe.cpu().double(), min(iterations, n_out))),
        math.sqrt(square / rank),
        None,
    )


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> float:
    """The Lanczos iteration, each vector made orthogonal to all before it."""
    basis = [start / start.norm()]
    columns: list[Tensor] = []
    for _ in range(iterations):
        w = product(basis[-1])
        known = torch.stack(basis)
        columns.append(known @ w)
        scale = w.norm()
        for _ in range(2):  # once leaves rounding
            w = w - known.T @ (known @ w)
        if not w.norm() > 1e-6 * scale:
            break
        basis.append(w / w.norm())
    size = len(columns)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i, column in enumerate(columns):
        matrix[: i + 1, i] = matrix[i, : i + 1] = column
    return max(0.0, float(torch.linalg.eigvalsh(matrix)[-1]))


def _path(
    trunk: list[_Seen], ran: list[_Ran], reached: set[Any], owned: dict[str, list[nn.Parameter]], source: Tensor | None
) -> list[_Layer]:
    """The outputs of the trunk in layers: one with weights, and those without that follow it.

    Nothing where other weights come after the trunk, such as those of a decoder beside the bound's other terms.
    """
    maps = _maps(ran, owned)
    modules = {_plain(r.name): r.module for r in ran}
    layers: list[_Layer] = []
    start, output = 0, source
    for s in trunk:
        passed = list(dict.fromkeys(_plain(r.name) for r in ran[start : s.at] if r.node in reached))
        inner = [name for name in passed if name in maps]
        parameters = [p for name in passed for p in owned.get(name, [])]
        if inner:
            name, module = _named(s, inner, maps, modules)
            layers.append(_Layer(name, kind_of(module), len(layers) + 1, output, s.output, parameters))
        elif layers:
            layers[-1].output = s.output
            layers[-1].kind += "" if any(s.module.children()) else f", {kind_of(s.module)}"
            layers[-1].parameters += parameters
        else:
            continue  # a norm of the input belongs to the first map
        start, output = s.at, s.output
    return [] if any(_plain(r.name) in maps and r.node in reached for r in ran[start:]) else layers


def _depths(maps: list[_Seen], value: Tensor) -> list[tuple[_Seen, int]]:
    """Each map with the number of maps on the longest path to its output, where these run side by side too."""
    nodes = {s.node for s in maps}
    depth: dict[Any, int] = {}
    for node in reversed(_topological(value.grad_fn)) if maps else ():
        depth[node] = max((depth[child] for child in _children(node)), default=0) + (node in nodes)
    return [(s, depth[s.node]) for s in maps if s.node in depth]


def _named(s: _Seen, inner: list[str], maps: set[str], modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """The module that holds all maps of a layer and no others, such as a residual block; else the last that ran."""
    if all(f"{name}.".startswith(f"{_plain(s.name)}.") for name in inner):
        return s.name, s.module
    name = max((n for n in modules if all(other.startswith(f"{n}.") for other in inner)), key=len, default="")
    within = {other for other in maps if other.startswith(f"{name}.")}
    return (name, modules[name]) if name in modules and within == set(inner) else (s.name, s.module)


def _maps(ran: list[_Ran], owned: dict[str, list[nn.Parameter]]) -> set[str]:
    """The innermost modules with weights, but for those that scale each number and belong to the map before them."""
    names = {_plain(r.name) for r in ran if _plain(r.name) in owned and not _follows(r.module)} - {WHOLE}
    around = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    return names - around


def _follows(module: nn.Module) -> bool:
    """Whether a module scales each number by itself: a norm, or an activation with weights."""
    return "norm" in type(module).__name__.lower() or isinstance(module, nn.PReLU)


def _plain(name: str) -> str:
    """The module's name without the number of its call."""
    return name.partition("#")[0]


def _measure(layer: _Layer, value: Tensor, jacobians: bool) -> LayerGradient:
    targets = [layer.output, *layer.parameters]
    gradients = torch.autograd.grad(value, targets, retain_graph=True, allow_unused=True)
    norms = [0.0 if g is None else float(g.cpu().double().norm()) for g in gradients]
    spectrum, before = None, layer.before
    comparable = before is not None and before.requires_grad and before.dim() > 1 and layer.output.dim() > 1
    if jacobians and before is not None and comparable and len(before) == len(layer.output):
        spectrum = singular_values(layer.output, before)
    return LayerGradient(layer.name, layer.kind, layer.depth, norms[0], math.hypot(*norms[1:]), spectrum)


def _trunk(seen: list[_Seen], value: Tensor, source: Tensor | None, first: str | None) -> tuple[list[_Seen], set[Any]]:
    """The outputs that every path of the graph from the source to the loss goes through, and all that paths reach.

    A node lies on all paths where the paths to it times the paths from it are all the paths.
    """
    if not seen or value.grad_fn is None:
        return [], set()
    order = _topological(value.grad_fn)
    if source is not None and source.requires_grad:
        start = source.grad_fn if source.grad_fn is not None else source.view_as(source).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    else:
        start = next((s.node for s in seen if s.name == first), seen[0].node)
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
    return trunk, {node for node, paths in to_source.items() if paths}


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
    depth = torch.tensor([layer.depth for layer in layers], dtype=torch.float64)
    n = int(depth.max() - depth.min()) + 1 if layers else 0
    if n < 3:
        return GradientFlow(layers, 1.0, 1.0, "too shallow", f"a depth of {n} is too small for a rate")
    if not all(norms):
        zero = [s.name for s in seen if _starts_at_zero(s.module)]
        why = f": all weights of {zero[-1]} are 0, as some layers start" if zero else ""
        first = next(layer.layer for layer in layers if not layer.output_norm)
        return GradientFlow(layers, 0.0, 0.0, "blocked", f"no gradient reaches {first}{why}")
    y = torch.tensor(norms, dtype=torch.float64).log()
    centred = depth - depth.mean()
    slope = float((centred * y).sum() / centred.square().sum())
    factor, total = math.exp(-slope), math.exp(-slope * (n - 1))
    verdict: Verdict = "vanishing" if total < 1 / FAR else "exploding" if total > FAR else "healthy"
    reason = (
        f"the gradient changes by a factor of {factor:.3g} per layer towards the input, of {total:.2g} over "
        f"a depth of {n} ({'within' if verdict == 'healthy' else 'beyond'} 1/{FAR:.0f} to {FAR:.0f})"
    )
    return GradientFlow(layers, factor, total, verdict, reason)


def _starts_at_zero(module: nn.Module) -> bool:
    weights = [p for p in module.parameters(recurse=False) if p.dim() > 1]
    return bool(weights) and not any(bool(w.any()) for w in weights)
