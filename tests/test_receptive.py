"""Receptive fields: the formula, the tracked bounds and the gradients agree, at the border too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.networks import VISION, resnet
from loglik.inspection import effective_field, measured_fields, receptive_fields
from loglik.networks import MLP, CausalTransformer, ResidualMLP


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


def test_pooling_of_maps_that_see_all_of_a_small_image():
    """Each unit sees the whole image before the pooling: the maps still have places, the pooled vector has none."""
    agree(resnet(), torch.zeros(1, 1, 8, 8))
    network = nn.Sequential(*[nn.Conv2d(1, 1, 9, padding=4) for _ in range(2)], nn.AdaptiveAvgPool2d(1))
    fields = agree(network, torch.zeros(1, 1, 5, 5))
    assert fields[0].whole and fields[0].jump == (1, 1)
    assert fields[2].jump is None and fields[2].size == (5, 5)


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
