"""What inspection measures of a network: formula against measurement, counts by hand, gradients with known factors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loglik.data import as_data
from loglik.inspection import (
    effective_field,
    fit_power,
    gradient_flow,
    held_bytes,
    invariance_error,
    layer_counts,
    measured_fields,
    permutation_error,
    permutation_errors,
    receptive_fields,
    sequence_cost,
    singular_values,
    translation_error,
)
from loglik.inspection.cost import FORMULA
from loglik.inspection.figures import attention_maps
from loglik.inspection.measure import inspect
from loglik.inspection.page import _short
from loglik.networks import MLP, BlockSettings, CausalTransformer, ConvNet, Encoder, ResidualMLP, ResNet, ViT
from loglik.recipes import build


class Block(nn.Module):
    """A residual block, with a projection where the shapes differ; the sum is in place, as many write it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        return self.act(h)


def resnet(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 7, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Block(4, 4, dilation=2),
        Block(4, 6, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class Tokens(nn.Module):
    """Patches, a class token, a Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.each = nn.Linear(8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.each(self.patches(x).flatten(2).transpose(1, 2))
        return self.encoder(torch.cat([self.token.expand(len(h), 1, 8), h], dim=1))[:, 0]


def agree(network: nn.Module, x: torch.Tensor, axes: tuple[int, ...] | None = None) -> list:
    """Every layer's field as propagated is the field that gradients show; the fields."""
    fields, measured = receptive_fields(network, x, axes=axes), measured_fields(network, x, axes=axes)
    assert fields
    for field in fields:
        assert not field.assumed
        assert measured[field.layer] == field.seen, field
        if field.jump is not None and field.seen is not None and not field.clipped:
            for size, jump, start, i, (first, last) in zip(
                field.size, field.jump, field.start, field.unit[-len(field.size) :], field.seen, strict=True
            ):
                assert last - first + 1 == size
                assert axes or len(field.shape) != 1 + len(field.size) or first == start + i * jump
    return fields


@st.composite
def stacks(draw: st.DrawFn) -> list[tuple[str, int, int, int, int]]:
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        kernel = draw(st.integers(1, 7))
        kind = draw(st.sampled_from(["conv", "conv", "max", "mean"]))
        most = kernel // 2 if kind != "conv" else 8
        stride = draw(st.integers(1, 3))
        dilation = 1 if kind == "mean" else draw(st.integers(1, 3))
        layers.append((kind, kernel, stride, draw(st.integers(0, most)), dilation))
    return layers


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(8, 40))
def test_field_of_random_stacks(stack, length):
    """The formula, the propagation and the gradients agree, at the border and away from it."""
    modules: list[nn.Module] = []
    n, rf, jump = length, 1, 1
    sizes = []
    for kind, k, s, p, d in stack:
        after = (n + 2 * p - d * (k - 1) - 1) // s + 1
        if after < 1:
            break
        n = after
        module = {
            "conv": lambda k=k, s=s, p=p, d=d: nn.Conv1d(1, 1, k, s, p, d),
            "max": lambda k=k, s=s, p=p, d=d: nn.MaxPool1d(k, s, p, d),
            "mean": lambda k=k, s=s, p=p: nn.AvgPool1d(k, s, p),
        }[kind]()
        modules.append(module)
        rf, jump = rf + d * (k - 1) * jump, jump * s
        sizes.append((rf, jump))
    if not modules:
        return
    network = nn.Sequential(*modules)
    x = torch.zeros(1, 1, length)
    fields, measured = receptive_fields(network, x), measured_fields(network, x, draws=1)
    assert [(f.size[0], f.jump[0]) for f in fields] == sizes
    for field in fields:
        assert not field.assumed
        assert measured[field.layer] == field.seen
    agree(network, torch.zeros(1, 1, length))


@pytest.mark.parametrize("ceil", [False, True])
def test_field_of_images_rectangular_and_ceiled(ceil):
    network = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), (1, 2), (1, 0)), nn.MaxPool2d(3, 2, ceil_mode=ceil), nn.Conv2d(4, 4, 3, groups=2)
    )
    fields = agree(network, torch.zeros(1, 3, 30, 41))
    assert [f.size for f in fields] == [(3, 5), (5, 9), (9, 17)]


def test_field_of_residual_nets():
    fields = {f.layer: f for f in agree(resnet(), torch.zeros(2, 1, 128, 128))}
    assert fields["0"].size == (7, 7)
    assert fields["2"].size == (11, 11)
    assert fields["3.act#2"].size == (35, 35)
    assert fields["4.shortcut.0"].size == (35, 35)  # 11 + 2·2·4 + 2·4
    assert fields["4.act#2"].size == (59, 59)  # the longer branch
    assert not fields["4.act#2"].clipped
    for name in ("5", "7"):
        assert fields[name].whole and fields[name].size == (128, 128) and fields[name].jump is None


def test_field_clipped_by_the_border():
    fields = agree(nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(6)]), torch.zeros(1, 1, 8, 8))
    assert fields[-1].size == (13, 13)
    assert fields[-1].seen == ((0, 7), (0, 7))
    assert fields[-1].clipped and not fields[0].clipped


def test_field_of_what_sees_only_padding():
    network = nn.Conv1d(1, 1, 1, padding=3, stride=7)
    (field,) = receptive_fields(network, torch.zeros(1, 1, 8))
    assert field.seen == ((4, 4),)
    (field,) = receptive_fields(nn.Conv1d(1, 1, 1, padding=9, stride=19), torch.zeros(1, 1, 2))
    assert field.seen is None and field.start == (-9,)


def test_field_of_attention_and_patches():
    fields = {f.layer: f for f in agree(Tokens(), torch.zeros(1, 1, 16, 16))}
    assert fields["patches"].size == fields["each"].size == (4, 4)
    assert fields["encoder.layers.0.self_attn"].whole


def test_field_of_upsampling():
    network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ConvTranspose1d(2, 2, 4, 2, 1), nn.Upsample(scale_factor=2))
    for field in agree(network.append(nn.Conv1d(2, 1, 3)), torch.zeros(1, 1, 20))[1:]:
        assert field.jump is None


def test_field_of_group_norm_is_the_whole_image():
    fields = agree(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), torch.zeros(1, 1, 12, 12))
    assert not fields[0].whole and fields[1].whole


@pytest.mark.parametrize(
    ("network", "shape", "axes"),
    [
        (CausalTransformer(16, 2, 2), (1, 9, 16), (1,)),
        (MLP(12, 3, (8,)), (1, 12), None),
        (ResidualMLP(12, 3, width=8), (1, 12), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_field_of_the_librarys_networks(network, shape, axes):
    fields = agree(network, torch.zeros(shape), axes)
    if isinstance(network, CausalTransformer):
        assert fields[-1].seen == ((0, 4),) and not fields[-1].whole  # what came before, and no more
    else:
        assert fields[-1].whole


VISION = {
    "resnet": lambda: ResNet(1, widths=(4, 8), blocks=(2, 1)),
    "bottlenecks": lambda: ResNet(1, widths=(4, 8), blocks=(1, 1), block="bottleneck", stem="large"),
    "plain": lambda: ConvNet(1, widths=(4, 8), blocks=(1, 1), norm="none"),
    "vit": lambda: ViT((1, 96, 96), patch=16, width=8, depth=1, heads=2),
    "hybrid": lambda: ViT((1, 96, 96), patch=8, stem=(4,), width=8, depth=2, heads=2, pool="class"),
}


@pytest.mark.parametrize("name", VISION)
def test_field_of_the_librarys_vision_networks(name):
    network = VISION[name]()
    fields = {f.layer: f for f in agree(network, torch.zeros(1, 1, 96, 96))}
    assert fields["(network)"].whole and fields["(network)"].size == (96, 96)
    if name == "resnet":  # 3, then two 3×3 a block, the second stage with stride 2
        assert fields["stages.0.1"].size == (11, 11)
        assert fields["stages.1.0"].size == (17, 17) and fields["stages.1.0"].jump == (2, 2)
    if name == "hybrid":
        assert fields["patches"].size == (17, 17) and fields["patches"].jump == (16, 16)
        assert fields["patches"].start == (-1, -1)


def test_the_librarys_networks_move_with_the_image_as_they_should():
    x = torch.zeros(1, 1, 32, 32)
    moved = translation_error(VISION["resnet"](), x)
    assert moved is not None and moved.shift == (2, 2) and moved.inside < 1e-5
    patches = translation_error(VISION["vit"](), torch.zeros(1, 1, 96, 96))
    assert patches is not None and patches.layer == "patches" and patches.everywhere < 1e-5


def test_an_unknown_operation_is_named():
    class Fourier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    (field,) = receptive_fields(Fourier(), torch.zeros(1, 1, 8))
    assert field.whole and any("fft" in name for name in field.assumed)


def test_bad_axes_are_refused():
    with pytest.raises(ValueError, match="axes must lie in 1"):
        receptive_fields(nn.Identity(), torch.zeros(1, 3), axes=(2,))


def test_effective_field_is_inside_the_field_and_peaks_in_the_middle():
    network = nn.Sequential(*[nn.Conv2d(1 if i == 0 else 8, 8, 3) for i in range(6)])
    x = torch.randn(4, 1, 31, 31)
    field = receptive_fields(network, x)[-1]
    heat = effective_field(network, x, "5", draws=4)
    (top, bottom), (left, right) = field.seen
    outside = heat.clone()
    outside[top : bottom + 1, left : right + 1] = 0
    assert not outside.any()
    inside = heat[top : bottom + 1, left : right + 1]
    assert inside[4:9, 4:9].mean() > 4 * inside[0].mean()
    with pytest.raises(ValueError, match="no layer 'nine'"):
        effective_field(network, x, "nine")


def test_counts_add_up():
    network = resnet(3)
    x = torch.zeros(2, 3, 32, 32)
    rows = layer_counts(network, lambda: network(x), batch=2)
    by_name = {row.layer: row for row in rows}
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in network.parameters())
    assert by_name["0"].parameters == 7 * 7 * 3 * 4 + 4
    assert by_name["0"].dense_parameters == 3 * 32 * 32 * 4 * 16 * 16 + 4 * 16 * 16
    assert by_name["0"].flops == 2 * 7 * 7 * 3 * 4 * 16 * 16
    assert by_name["0"].activation_bytes == 4 * 16 * 16 * 4
    assert by_name["7"].flops == 2 * 6 * 3


def test_counts_of_attention():
    network = CausalTransformer(16, 2, 2)
    x = torch.zeros(1, 10, 16)
    rows = {row.layer: row for row in layer_counts(network, lambda: network(x))}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in network.parameters())
    assert rows["blocks.0.attention"].flops == 2 * 2 * 10 * 10 * 16
    multi = nn.MultiheadAttention(8, 2, batch_first=True)
    h = torch.zeros(1, 5, 8)
    counted = layer_counts(multi, lambda: multi(h, h, h))
    assert sum(row.parameters for row in counted) == sum(p.numel() for p in multi.parameters())
    assert sum(row.activation_bytes for row in counted) == 4 * 5 * 8


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


def test_singular_values_exact_and_estimated():
    torch.manual_seed(1)
    weight = torch.randn(60, 40)
    x = torch.randn(3, 40, requires_grad=True)
    truth = torch.linalg.svdvals(weight)
    y = x @ weight.T
    exact, estimate = singular_values(y, x), singular_values(y, x, exact=10)
    assert exact is not None and estimate is not None
    assert math.isclose(exact.largest, truth[0], rel_tol=1e-4) and math.isclose(exact.smallest, truth[-1], rel_tol=1e-4)
    assert math.isclose(estimate.largest, truth[0], rel_tol=1e-3) and estimate.smallest is None
    assert math.isclose(estimate.rms, exact.rms, rel_tol=0.1)
    assert singular_values(torch.randn(3, 2, requires_grad=True) * 2, x) is None


def test_convolutions_move_with_the_image_and_dense_layers_do_not():
    network = resnet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    moved = translation_error(network.double(), torch.zeros(1, 1, 32, 32, dtype=torch.float64))
    assert moved is not None and moved.layer == "4.act#2" and moved.shift == (8, 8)
    assert moved.inside < 1e-12 < moved.everywhere
    assert translation_error(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), torch.zeros(1, 1, 4, 4)) is None


def test_pooled_features_change_little():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(16, 1, 6, 6), size=24, mode="bilinear")
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dense = nn.Sequential(nn.Flatten(), nn.Linear(576, 8))
    assert invariance_error(conv, x) < 0.5 * invariance_error(dense, x)


def test_attention_is_a_map_of_sets_until_positions_are_added():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    assert permutation_error(layer, x) < 1e-12
    assert permutation_error(layer, x, torch.randn(7, 8, dtype=torch.float64)) > 0.1
    assert permutation_error(Encoder(8, 2, 2).double(), x) < 1e-12
    assert permutation_error(CausalTransformer(8, 1, 2).double(), x) > 1e-6  # the mask is an order


def test_permutations_are_those_of_the_network_as_it_runs():
    """Positions enter before the norm of the first block, on the scale of the embedded patches: by hand."""
    torch.manual_seed(0)
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3))
    density = build("classifier", data.spec, network="vit", width=32).eval()
    vit = density.features
    found = {row.layer: row for row in inspect(density, data).permutations}
    assert list(found) == ["features.encoder.blocks.0.attention", "features.encoder"]

    part = data.split(data.scored_split)
    positions = vit.positions.detach()
    with torch.no_grad():
        content = vit.patches(density.prepare(part.x[:16])).flatten(2).transpose(1, 2)
        order = torch.randperm(content.shape[1], generator=torch.Generator().manual_seed(0))
        block = vit.encoder.blocks[0]
        layers = {
            "features.encoder.blocks.0.attention": lambda h: block.attention(block.norm_attention(h)),
            "features.encoder": vit.encoder,
        }
        for name, layer in layers.items():
            still, moved = layer(content + positions), layer(content[:, order] + positions)
            by_hand = float((still[:, order] - moved).norm() / still.norm())
            assert found[name].without < 2e-6
            assert found[name].with_positions > 1000 * found[name].without
            assert math.isclose(found[name].with_positions, by_hand, rel_tol=1e-3)
        vit.positions.zero_()
    for row in inspect(density, data).permutations:
        assert row.without < 2e-6 and row.with_positions is None


def test_permutations_of_blocks_in_a_row_and_of_rotations():
    x = torch.randn(4, 6, 16)

    class Posed(nn.Module):
        """Positions by another name, after the embedding's norm, and blocks that a list holds."""

        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, 6, 16))
            layer = {"nhead": 2, "dim_feedforward": 16, "batch_first": True}
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, **layer) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x + self.pos_embed
            for layer in self.layers:
                h = layer(h)
            return h.mean(1)

    torch.manual_seed(0)
    posed = Posed()
    first, whole = permutation_errors(posed, lambda: posed(x))
    assert (first.layer, whole.layer) == ("layers.0.self_attn", "layers.1")
    assert max(first.without, whole.without) < 2e-6
    chain = nn.Sequential(*posed.layers)
    by_hand = permutation_error(chain, x, posed.pos_embed[0].detach())
    assert math.isclose(whole.with_positions, by_hand, rel_tol=1e-3)

    rotary = Encoder(16, 1, 2, settings=BlockSettings(rotary=True))
    rotary.blocks[0].attention.qkv.weight.data *= 20
    for row in permutation_errors(rotary, lambda: rotary(x)):
        assert row.without < 2e-6 < 1e-3 < row.with_positions
    for blocks in (None, BlockSettings(rotary=True)):
        causal = CausalTransformer(16, 1, 2, settings=blocks)
        assert all(row.without > 1e-4 for row in permutation_errors(causal, lambda: causal(x)))  # noqa: B023
    assert permutation_errors(MLP(16, 2, (4,)), lambda: None) == []


def test_a_random_order_of_two_is_not_the_same_order():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x, positions = torch.randn(2, 2, 8), torch.randn(2, 8)
    assert all(permutation_error(layer, x, positions, seed=seed) > 0.01 for seed in range(4))


def test_cost_in_length():
    costs = {cost.kind: cost for cost in sequence_cost((64, 128, 256), width=16, repeats=2)}
    assert set(costs) == {"attention", FORMULA, "convolution", "recurrence"}
    assert all(len(cost.seconds) == 3 and min(cost.seconds) > 0 for cost in costs.values())
    assert 1.5 < costs["attention"].flops_law.p < 2.0
    assert math.isclose(costs["convolution"].flops_law.p, 1.0, abs_tol=1e-9)
    assert math.isclose(costs["recurrence"].flops_law.p, 1.0, abs_tol=1e-9)
    assert costs[FORMULA].flops == costs["attention"].flops
    assert costs["attention"].quadratic is not None and costs["recurrence"].quadratic is None
    with pytest.raises(ValueError, match="at least two different lengths"):
        sequence_cost((64,))
    assert math.isclose(fit_power([1, 2, 4], [5, 5, 5]).p, 0.0, abs_tol=1e-12)


def test_memory_in_length():
    """By hand, in float32: the input, queries, keys and values, and what each kind keeps beside them."""
    width, lengths = 16, (128, 256, 512)
    costs = {cost.kind: cost for cost in sequence_cost(lengths, width=width, repeats=1)}
    assert costs[FORMULA].held == tuple(4 * (4 * n * width + n * n) for n in lengths)  # and the matrix
    assert costs["attention"].held == tuple(4 * (5 * n * width + n) for n in lengths)  # the output and a sum per query
    assert costs["convolution"].held == tuple(4 * n * width for n in lengths)
    assert 1.7 < costs[FORMULA].held_law.p < 2.0
    for kind in ("attention", "convolution", "recurrence"):
        assert math.isclose(costs[kind].held_law.p, 1.0, abs_tol=1e-9)


def test_memory_held_counts_each_tensor_once_and_no_weights():
    layer = nn.Linear(6, 4)
    x = torch.randn(10, 6)
    assert held_bytes(lambda: layer(x).sigmoid().sum(), layer.parameters()) == 4 * (10 * 6 + 10 * 4)
    assert held_bytes(lambda: layer(x) + layer(x), layer.parameters()) == 4 * 10 * 6


def test_flops_of_recurrence():
    """A product of the gates' weights with the input and the state per step, whatever kernel runs them."""
    x = torch.randn(2, 10, 8)
    for kind, gates in ((nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)):
        network = kind(8, 16, batch_first=True)
        (row,) = layer_counts(network, lambda: network(x), batch=2)  # noqa: B023
        assert row.flops == 2 * 10 * gates * (8 * 16 + 16 * 16)
        assert row.parameters == gates * (8 * 16 + 16 * 16 + 2 * 16)
        assert row.activation_bytes == 4 * 10 * 16


def test_memory_of_layers_that_return_their_input():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2), nn.ReLU()
    )
    x = torch.randn(2, 1, 4, 4)
    rows = layer_counts(network, lambda: network(x), batch=2)
    assert [row.activation_bytes for row in rows] == [256, 0, 0, 0, 8, 8]


def test_pooling_of_maps_that_see_all_of_a_small_image():
    """Each unit sees the whole image before the pooling: the maps still have places, the pooled vector has none."""
    agree(resnet(), torch.zeros(1, 1, 8, 8))
    network = nn.Sequential(*[nn.Conv2d(1, 1, 9, padding=4) for _ in range(2)], nn.AdaptiveAvgPool2d(1))
    fields = agree(network, torch.zeros(1, 1, 5, 5))
    assert fields[0].whole and fields[0].jump == (1, 1)
    assert fields[2].jump is None and fields[2].size == (5, 5)


@pytest.mark.parametrize("family", ["classifier", "autoregressive"])
def test_attention_maps_are_the_networks_own(family):
    """Rows sum to 1, nothing from later positions where attention is causal, and every layer's is there."""
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3) if family == "classifier" else x)
    options = {"network": "vit", "width": 32} if family == "classifier" else {"width": 16, "depth": 3}
    found = inspect(build(family, data.spec, **options), data)
    layers, heads, length = (4, 1, 4) if family == "classifier" else (3, 4, 64)
    assert len(found.maps) == layers
    for weights in found.maps.values():
        assert weights.shape == (heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones(heads, length))
        assert (weights.triu(1).abs().max() == 0) == (family == "autoregressive")
    assert attention_maps(found.maps).startswith("<svg")
    assert next(iter(_short(found.maps))) in next(iter(found.maps))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_a_network_on_a_gpu(network):
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3))
    torch.manual_seed(0)
    density = build("classifier", data.spec, network=network, width=32).eval()
    on_cpu, on_gpu = inspect(density, data), inspect(density.cuda(), data)
    assert on_gpu.flow.verdict == on_cpu.flow.verdict and on_gpu.fields == on_cpu.fields
    assert math.isclose(on_gpu.flow.total, on_cpu.flow.total, rel_tol=1e-2)
    assert [row.flops for row in on_gpu.counts] == [row.flops for row in on_cpu.counts]
    for here, there in zip(on_cpu.permutations, on_gpu.permutations, strict=True):
        assert math.isclose(here.with_positions, there.with_positions, rel_tol=1e-2)
