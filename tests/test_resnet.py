"""Convolutional networks: timm's with timm's weights, plain and residual ones, and their errors."""

import re

import pytest
import torch
from torch import nn

from helpers.needs import peer
from loglik.networks import ConvNet, ResNet


def to_timm(name: str) -> str:
    """Return timm's name of a weight."""
    name = re.sub(r"^stem\.0", "conv1", re.sub(r"^stem\.1", "bn1", name))
    name = re.sub(r"^stages\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"convolutions\.(\d+)\.0", lambda m: f"conv{int(m[1]) + 1}", name)
    name = re.sub(r"convolutions\.(\d+)\.1", lambda m: f"bn{int(m[1]) + 1}", name)
    return name.replace("shortcut", "downsample")


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet50", {"blocks": (3, 4, 6, 3), "block": "bottleneck"})],
    ids=["resnet18", "resnet50"],
)
def test_outputs_are_timms(float64, name, options):
    theirs = peer("timm").create_model(name, num_classes=0).double()
    ours = ResNet(3, stem="large", **options)
    weights = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    assert {to_timm(k) for k in ours.state_dict()} == set(weights)
    for weight in theirs.parameters():  # scales of zero would hide the output of a block
        nn.init.uniform_(weight, 0.5, 1.5) if weight.dim() == 1 else None
    ours.load_state_dict({k: weights[to_timm(k)].clone() for k in ours.state_dict()})
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(2, 3, 64, 64)
    for model in (ours, theirs):
        model.train()
    features, expected = ours(x), theirs(x)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(features)
    (features * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, weight in ours.named_parameters():
        gradient = weights[to_timm(key)].grad
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    for model in (ours, theirs):
        model.eval()  # the moving averages are equal
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_plain_network_is_a_residual_one_without_shortcuts():
    residual = ResNet(1, widths=(4, 8), blocks=(2, 2))
    plain = ResNet(1, widths=(4, 8), blocks=(2, 2), residual=False)
    extra = set(residual.state_dict()) - set(plain.state_dict())
    assert extra and all("shortcut" in name for name in extra)
    assert set(plain.state_dict()) < set(residual.state_dict())
    assert ConvNet(1, widths=(4, 8), blocks=(2, 2)).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 11_689_512), ({"blocks": (3, 4, 6, 3), "block": "bottleneck"}, 25_557_032)],
    ids=["resnet18", "resnet50"],
)
def test_parameters_are_as_published(options, count):
    """With a head for ImageNet's 1000 classes, as torchvision's table of models counts them."""
    with torch.device("meta"):
        network = ResNet(3, stem="large", **options)
        head = nn.Linear(network.outputs, 1000)
    assert sum(p.numel() for p in [*network.parameters(), *head.parameters()]) == count


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_residual_block_starts_as_the_identity(norm, block):
    network = ResNet(2, widths=(4,), blocks=(3,), norm=norm, block=block).eval()
    x = torch.randn(3, 2, 6, 6)
    first, *others = network.stages[0]
    start = network.stem(x).relu()
    torch.testing.assert_close(network.maps(x), first.shortcut(start).relu())
    assert len(others) == 2 and all(isinstance(block.shortcut, nn.Identity) for block in others)


def test_batch_norm_is_its_formula(float64):
    """The batch's moments over images and positions in training, their moving averages in evaluation."""
    convolution, norm = ResNet(2, widths=(4,), blocks=(1,)).stem
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    h = convolution(torch.randn(3, 2, 5, 5))
    mean, variance = torch.zeros(4), torch.ones(4)

    def formula(mean, variance):
        scaled = (h - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return norm.weight[:, None, None] * scaled + norm.bias[:, None, None]

    for _ in range(2):
        torch.testing.assert_close(norm(h), formula(h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)))
        mean = 0.9 * mean + 0.1 * h.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * h.var((0, 2, 3))
    torch.testing.assert_close(norm.eval()(h), formula(mean, variance))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_outputs_of_modules_are_not_overwritten(residual, norm):
    """Inspection keeps the outputs that hooks see, to take gradients at them."""
    network, seen = ResNet(2, widths=(4, 8), blocks=(2, 1), residual=residual, norm=norm), []
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append((output, output.detach().clone())))
    network(torch.randn(2, 2, 8, 8))
    assert all(torch.equal(kept, copy) for kept, copy in seen)


def test_layers_of_the_cifar_family():
    network = ResNet(1, widths=(16, 32, 64), blocks=(9, 9, 9))
    layers = [m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(layers) + 1 == 56  # and a linear head
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 64) and network.outputs == 64


@pytest.mark.parametrize("stem", ["small", "strided", "large"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_part_trains(stem, block, norm):
    network = ResNet(2, widths=(4, 8), blocks=(1, 2), block=block, stem=stem, norm=norm)
    x = torch.randn(3, 2, 16, 16)
    features = network(x)
    assert features.shape == (3, network.outputs)
    features.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.maps(x).shape[-1] == 16 // network.stride
    rows = network.eval()(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(rows, network(x), rtol=1e-4, atol=1e-5)


def test_wrong_images_are_refused():
    network = ResNet(3, widths=(4, 8, 8), blocks=(1, 1, 1))
    with pytest.raises(ValueError, match=r"images of 3 channels, got \(1, 8, 8\)"):
        network(torch.randn(2, 1, 8, 8))
    with pytest.raises(ValueError, match="3×9 are smaller than the network's stride 4"):
        network(torch.randn(2, 3, 3, 9))


@pytest.mark.parametrize(("stem", "stride"), [("small", 2), ("strided", 4), ("large", 8)])
def test_batch_norm_needs_two_values(stem, stride):
    network = ResNet(3, widths=(4, 8), blocks=(1, 1), stem=stem)
    one, more = torch.randn(1, 3, stride, stride), torch.randn(1, 3, stride, stride + 1)
    assert network.stride == stride
    with pytest.raises(ValueError, match="at least 2 examples per batch in training where maps shrink to 1×1, got 1"):
        network(one)
    assert network.maps(more).shape[-2:] == (1, 2)
    assert network(one.expand(2, -1, -1, -1)).isfinite().all()
    assert network.eval()(one).isfinite().all()
    assert ResNet(3, widths=(4, 8), blocks=(1, 1), stem=stem, norm="none")(one).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (2, 2, 0, 2)}, r"at least 1 block, got \(2, 2, 0, 2\)"),
        ({"widths": (4, 8)}, "one number of blocks for each width"),
        ({"block": "wide"}, "unknown block 'wide'"),
        ({"stem": "huge"}, "unknown stem 'huge'"),
        ({"norm": "group"}, "unknown norm 'group'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(3, **options)
