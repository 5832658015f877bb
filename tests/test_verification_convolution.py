"""The checks of convolutions hold for convolutional networks, and each fails where its statement is broken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.verified import outcome, subject_of
from helpers.verified_networks import Mean, built, changed, of_images, running

NAMES = ["translation", "convolution-parameters", "receptive-field"]


@pytest.fixture(scope="module")
def resnet():
    return subject_of("classifier", "digits", network="resnet")


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_a_residual_network(resnet, name):
    assert outcome(name, resnet) == "holds"


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_holds_for_a_denoiser(kind):
    subject = subject_of("diffusion", "digits", kind=kind, train=1, width=16)
    found = [outcome(name, subject) for name in NAMES]
    assert found == ["reported" if kind == "dit" else "holds", "holds", "holds"]  # a dit's patches do not overlap


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_layers_of_ones_own(name):
    circular = nn.Conv2d(4, 8, (3, 5), padding="same", padding_mode="circular", groups=2, bias=False)
    layers = nn.Conv2d(1, 4, 2, padding=1, dilation=2), nn.ReLU(), nn.MaxPool2d(2), circular, nn.Conv2d(8, 4, 1), Mean()
    assert outcome(name, of_images(*layers)) == "holds"


class Turned(nn.Module):
    def forward(self, x):
        return x.mT


def test_holds_for_sequences():
    network = nn.Sequential(Turned(), nn.Conv1d(16, 16, 3, padding=1), Turned())
    assert [outcome(name, built(network)) for name in NAMES] == ["holds"] * 3


def test_does_not_apply_where_a_layer_has_its_channels_elsewhere():
    class Last(nn.Conv1d):
        def forward(self, x):
            return super().forward(x.mT).mT

    found = [outcome(name, built(Last(16, 16, 3, padding=1))) for name in NAMES]
    assert found == ["does not apply", "holds", "does not apply"]


@pytest.mark.parametrize("name", NAMES)
def test_does_not_apply_without_convolutions(name):
    assert outcome(name, built(nn.LSTM(16, 16, batch_first=True))) == "does not apply"


def test_translation_fails_where_padded_tiles_are_presented_as_a_convolution():
    def tiles(self, x):
        parts = [nn.Conv2d.forward(self, part) for part in x.split(4, dim=-1)]
        return torch.cat(parts, dim=-1)

    assert outcome("translation", of_images(_as(nn.Conv2d(1, 4, 3, padding=1), tiles), Mean())) == "fails"


def test_translation_fails_where_a_stride_is_presented_as_none():
    def strided(self, x):
        y = F.conv2d(x, self.weight, self.bias, stride=2, padding=1)
        return F.interpolate(y, scale_factor=2)[..., : x.shape[-2], : x.shape[-1]]

    assert outcome("translation", of_images(_as(nn.Conv2d(1, 4, 3, padding=1), strided), Mean())) == "fails"


def test_parameters_fail_with_a_hidden_parameter(resnet):
    def extra(layer):
        layer.scale = nn.Parameter(torch.ones(layer.out_channels))

    assert outcome("convolution-parameters", changed(resnet, nn.Conv2d, extra)) == "fails"


def test_receptive_field_fails_with_a_hidden_dilation(resnet):
    def dilated(self, x):
        wide = self.padding[0] * 2, self.padding[1] * 2
        return F.conv2d(x, self.weight, self.bias, self.stride, wide, dilation=2)

    assert outcome("receptive-field", changed(resnet, nn.Conv2d, running(dilated))) == "fails"


def _as(layer, forward):
    running(forward)(layer)
    return layer
