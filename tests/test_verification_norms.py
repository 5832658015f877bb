"""The checks of LayerNorm and BatchNorm hold for networks with them, and each fails where its statement is broken."""

import pytest
import torch
from torch import nn

from helpers.verified import outcome, subject_of
from helpers.verified_networks import Mean, built, changed, of_images, running
from loglik.verification import norms


@pytest.fixture(scope="module")
def vit():
    return subject_of("classifier", "digits", network="vit")


@pytest.fixture(scope="module")
def resnet():
    return subject_of("classifier", "digits", network="resnet")


@pytest.fixture(scope="module")
def norm1d():
    class Turned(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.mT).mT

    return built(nn.Sequential(nn.Linear(16, 16), Turned(16, momentum=None), nn.RMSNorm(16)))


@pytest.mark.parametrize("name", ["layer-norm", "batch-norm-breaks"])
def test_holds_for_a_transformer(vit, name):
    assert outcome(name, vit) == "holds"


@pytest.mark.parametrize("name", ["batch-norm", "batch-norm-breaks"])
def test_holds_for_a_residual_network(resnet, name):
    assert outcome(name, resnet) == "holds"


@pytest.mark.parametrize("name", ["layer-norm", "batch-norm-breaks"])
def test_holds_for_layers_of_ones_own(norm1d, name):
    assert outcome(name, norm1d) == "holds"


def test_holds_for_a_cumulative_average_without_weights():
    subject = of_images(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None, affine=False), nn.ReLU(), Mean())
    assert outcome("batch-norm", subject) == "holds"


def test_holds_for_a_table():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.01])
    assert outcome("batch-norm-breaks", subject_of("flow", x.numpy())) == "holds"


def test_does_not_apply_without_norms(vit, resnet):
    assert outcome("layer-norm", resnet) == outcome("batch-norm", vit) == "does not apply"


def test_layer_norm_fails_with_moments_over_the_batch(vit):
    def over_batch(self, x):
        return (x - x.mean(0)) / (x.var(0, correction=0) + self.eps).sqrt() * self.weight + self.bias

    assert outcome("layer-norm", changed(vit, nn.LayerNorm, running(over_batch))) == "fails"


def test_layer_norm_fails_with_an_unbiased_variance(vit):
    def unbiased(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias

    assert outcome("layer-norm", changed(vit, nn.LayerNorm, running(unbiased))) == "fails"


def test_batch_norm_fails_where_its_average_keeps_the_wrong_share(resnet):
    def swapped(self, x):
        self.momentum = 1 - self.momentum
        y = nn.BatchNorm2d.forward(self, x)
        self.momentum = 1 - self.momentum
        return y

    assert outcome("batch-norm", changed(resnet, nn.BatchNorm2d, running(swapped))) == "fails"


def test_batch_norm_fails_where_testing_takes_the_batchs_moments(resnet):
    def always(self, x):
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    assert outcome("batch-norm", changed(resnet, nn.BatchNorm2d, running(always))) == "fails"


def test_batch_norm_fails_where_training_takes_the_averages(resnet):
    def never(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)

    assert outcome("batch-norm", changed(resnet, nn.BatchNorm2d, running(never))) == "fails"


def test_batch_norm_breaks_fails_for_a_layer_norm_that_sees_the_batch(vit, monkeypatch):
    class OverBatch(nn.LayerNorm):
        def forward(self, x):
            return (x - x.mean(0)) / x.std(0)

    monkeypatch.setattr(norms.nn, "LayerNorm", OverBatch)
    assert outcome("batch-norm-breaks", vit) == "fails"


def test_batch_norm_breaks_fails_for_a_batch_norm_that_ignores_the_batch(vit, monkeypatch):
    class Alone(nn.BatchNorm1d):
        def forward(self, x):
            return x

    monkeypatch.setattr(norms.nn, "BatchNorm1d", Alone)
    assert outcome("batch-norm-breaks", vit) == "fails"
