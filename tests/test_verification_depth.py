"""The checks of depth hold for deep networks, and each fails where its statement is broken."""

import pytest
import torch
from torch import nn

from helpers.verified import outcome, subject_of
from helpers.verified_networks import Mean, built, changed, of_images, running
from loglik.networks.resnet import _Block as Block
from loglik.networks.transformer import _Block as TransformerBlock
from loglik.verification import depth

NAMES = ["jacobian-product", "gradient-norms", "shortcut"]
TORCH = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


@pytest.fixture(scope="module")
def resnet():
    return subject_of("classifier", "digits", network="resnet")


@pytest.fixture(scope="module")
def vit():
    return subject_of("classifier", "digits", network="vit", width=64, train=2)


class Halved(torch.autograd.Function):
    """The identity, whose gradient is half of what it should be."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_a_residual_network(resnet, name):
    assert outcome(name, resnet) == "holds"


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_a_transformer(vit, name):
    assert outcome(name, vit) == "holds"


@pytest.mark.parametrize("name", NAMES)
def test_holds_for_torchs_own_layers(name):
    assert outcome(name, built(nn.TransformerEncoder(TORCH, 2, enable_nested_tensor=False))) == "holds"


def test_holds_for_a_unet():
    subject = subject_of("diffusion", "digits", kind="unet", width=8, train=2)
    assert [outcome(name, subject) for name in NAMES] == ["holds"] * 3


def test_a_plain_network_has_no_shortcut():
    plain = of_images(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), Mean())
    assert [outcome(name, plain) for name in NAMES] == ["holds", "holds", "does not apply"]


def test_a_recurrence_has_no_shortcut():
    assert outcome("shortcut", built(nn.LSTM(16, 16, batch_first=True))) == "does not apply"


@pytest.mark.parametrize("family", ["flow", "vae"])
def test_nothing_fails_for_a_density_of_a_table(family):
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.01])
    subject = subject_of(family, x.numpy(), train=1)
    assert "fails" not in [outcome(name, subject) for name in NAMES]


def test_the_product_fails_where_a_block_halves_the_gradient(vit):
    def halves(self, x, *args, **kwargs):
        return Halved.apply(TransformerBlock.forward(self, x, *args, **kwargs))

    assert outcome("jacobian-product", changed(vit, TransformerBlock, running(halves))) == "fails"


def test_gradient_norms_fail_where_shortcuts_are_scaled(vit, monkeypatch):
    monkeypatch.setattr(depth, "SHORTCUT", 0.25)
    assert outcome("gradient-norms", vit) == "fails"


def test_shortcut_fails_in_a_residual_network_where_it_is_halved(resnet):
    def halved(self, x):
        h = self.convolutions[1](self.convolutions[0](x).relu())
        return (h + 0.5 * self.shortcut(x)).relu()

    assert outcome("shortcut", changed(resnet, Block, running(halved))) == "fails"


def test_shortcut_fails_in_a_transformer_where_it_is_halved():
    class HalvedLayer(nn.TransformerEncoderLayer):
        def forward(self, x, *args, **kwargs):
            x = 0.5 * x + self._sa_block(self.norm1(x), None, None)
            return x + self._ff_block(self.norm2(x))

    network = nn.Sequential(*(HalvedLayer(16, 2, 32, batch_first=True) for _ in range(2)))
    assert outcome("shortcut", built(network)) == "fails"
