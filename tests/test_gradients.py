"""Gradient flow of networks whose gradients change by a known factor."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers.networks import resnet
from loglik.data import as_data
from loglik.inspection import gradient_flow, inspect
from loglik.recipes import build


def scaled(factor: float, depth: int = 12, width: int = 24, residual: bool = False) -> nn.Module:
    """Layers of orthogonal maps times a factor, so that each Jacobian has all singular values alike."""

    class Map(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = super().forward(x)
            return x + h if residual else h

    layers = [Map(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
        layer.weight.data *= factor
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "vanishing"), (1.0, "healthy"), (2.0, "exploding")])
def test_gradient_flow_has_a_name(factor, verdict):
    network = scaled(factor)
    x = torch.randn(8, 24, requires_grad=True)
    flow = gradient_flow(network, lambda: network(x).sum(), source=x)
    assert flow.verdict == verdict
    assert math.isclose(flow.factor, factor, rel_tol=1e-3)
    assert len(flow.layers) == 12
    for layer in flow.layers:
        assert layer.jacobian is not None and layer.parameter_norm
        for value in (layer.jacobian.largest, layer.jacobian.rms, layer.jacobian.smallest):
            assert math.isclose(value, factor, rel_tol=1e-4)
    assert x.grad is None and network.training


def test_a_shortcut_keeps_the_gradient():
    """The same maps that let it vanish: with a shortcut each Jacobian is 1 + J."""
    x = torch.randn(8, 24, requires_grad=True)
    plain, short = scaled(0.3), scaled(0.3, residual=True)
    assert gradient_flow(plain, lambda: plain(x).sum(), source=x).verdict == "vanishing"
    assert gradient_flow(short, lambda: short(x).sum(), source=x).verdict == "healthy"


def test_the_layers_of_a_residual_net_are_its_blocks():
    network = resnet()
    x = torch.randn(4, 1, 32, 32, requires_grad=True)
    names = [layer.layer for layer in gradient_flow(network, lambda: network(x).square().sum(), source=x).layers]
    assert "3.conv1" not in names and "4.shortcut.0" not in names and "4.norm2" not in names
    assert names == ["0", "3", "4", "7"]


def stack(factor: float, depth: int, act: type[nn.Module], *, residual: bool = False) -> nn.Sequential:
    """Orthogonal maps times a factor, each with an activation after it."""
    layers: list[nn.Module] = []
    for part in scaled(factor, depth, residual=residual):
        layers += [part, act()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("depth", "factor", "act", "residual", "verdict"),
    [
        (3, 0.5, nn.Tanh, False, "healthy"),  # three layers that halve the gradient: a quarter is left
        (3, 0.05, nn.Tanh, False, "vanishing"),
        (10, 0.5, nn.Tanh, False, "vanishing"),
        (50, 0.5, nn.Tanh, False, "vanishing"),
        (50, 0.88, nn.Identity, False, "vanishing"),
        (3, 1.0, nn.Tanh, False, "healthy"),
        (10, 1.0, nn.Tanh, False, "healthy"),
        (50, 1.0, nn.Tanh, False, "healthy"),
        (50, 0.95, nn.Identity, False, "healthy"),
        (3, 2.0, nn.Identity, False, "healthy"),
        (3, 20.0, nn.Identity, False, "exploding"),
        (10, 2.0, nn.Identity, False, "exploding"),
        (50, 2.0, nn.Identity, False, "exploding"),
        (3, 0.3, nn.Identity, True, "healthy"),
        (10, 0.3, nn.Identity, True, "healthy"),
        (50, 0.3, nn.Identity, True, "healthy"),
    ],
)
def test_the_verdict_on_stacks_of_maps_with_activations(depth, factor, act, residual, verdict):
    """A map and its activation are one layer, and the change is that over the depth that the network has."""
    torch.manual_seed(0)
    network = stack(factor, depth, act, residual=residual)
    x = torch.randn(16, 24, requires_grad=True)
    weights = torch.linspace(-1, 1, 24)
    flow = gradient_flow(network, lambda: (network(x) * weights).sum(), source=x, jacobians=depth <= 10)
    assert len(flow.layers) == depth
    assert flow.verdict == verdict
    if verdict == "vanishing" and depth <= 10:
        assert all(layer.jacobian is not None and layer.jacobian.largest <= factor + 1e-6 for layer in flow.layers)
    if act is nn.Identity and not residual:
        assert math.isclose(flow.factor, factor, rel_tol=1e-4)
        assert math.isclose(flow.total, factor ** (depth - 1), rel_tol=1e-3)


def test_a_layer_is_a_map_and_what_follows_it():
    """The Jacobian is that of both together; pooling, norms and dropout count no layer of their own."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 4 * 4, 5), nn.Sigmoid(),
    )  # fmt: skip
    x = torch.randn(3, 1, 14, 14, requires_grad=True)
    layers = gradient_flow(network, lambda: network(x).square().sum(), source=x).layers
    assert [layer.layer for layer in layers] == ["1", "5", "9"]
    assert [layer.kind for layer in layers] == [
        "Conv2d 3, BatchNorm2d, PReLU, MaxPool2d 2 s2",
        "Conv2d 3, Tanh",
        "Linear, Sigmoid",
    ]
    network.eval()
    h = network[:7](x).detach().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda h: network[7:](h[None])[0], h[0]).flatten(1)
    values = torch.linalg.svdvals(jacobian)
    found = layers[2].jacobian
    assert math.isclose(found.largest, values[0], rel_tol=1e-4)
    assert math.isclose(found.rms, values.square().mean().sqrt(), rel_tol=1e-4)
    assert math.isclose(found.smallest, values[-1], rel_tol=1e-4)
    loss = network(x).square().sum()
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*network[5].parameters()])]).norm()
    assert math.isclose(layers[1].parameter_norm, norm, rel_tol=1e-5)


def test_layers_side_by_side_count_once_in_the_depth():
    """Three branches of two maps each, whose paths end in the loss apart: a depth of three with the map before them."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.branches = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(3)])
            for layer in (self.first, *(part for branch in self.branches for part in branch)):
                nn.init.orthogonal_(layer.weight, gain=0.05)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return torch.stack([branch(h).sum() for branch in self.branches]).sum()

    torch.manual_seed(0)
    network = Branches()
    x = torch.randn(4, 8)
    flow = gradient_flow(network, lambda: network(x))
    assert [layer.depth for layer in flow.layers] == [1, 2, 3, 2, 3, 2, 3]
    norms = {layer.layer: math.log(layer.output_norm) for layer in flow.layers}
    last = np.mean([norms[f"branches.{i}.1"] for i in range(3)])
    assert math.isclose(flow.total, math.exp(norms["first"] - last), rel_tol=0.5)
    assert flow.verdict == "vanishing"


def test_the_path_starts_at_the_data_and_not_at_the_time():
    """A U-Net's time embedding runs first, and its image goes another way; a flow's halves go beside its networks."""
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data(x)
    found = inspect(build("diffusion", data.spec, kind="unet", width=16), data)
    names = [layer.layer for layer in found.flow.layers]
    assert names[0] == "denoiser.network.stem" and not any("embedding" in name for name in names)
    flow = build("flow", data.spec, kind="glow", width=8)
    couplings = {name for name, _ in flow.named_modules() if name.endswith("network.output")}
    layers = {layer.layer for layer in inspect(flow, data).flow.layers}
    assert couplings <= layers  # of every coupling, and not of the first alone


def test_zero_weights_block_the_gradient():
    network = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    nn.init.zeros_(network[3].weight)
    x = torch.randn(2, 4)
    flow = gradient_flow(network, lambda: network(x).sum())
    assert flow.verdict == "blocked" and "weights of 3" in flow.reason
