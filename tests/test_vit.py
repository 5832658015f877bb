"""The vision Transformer: timm's with timm's weights, positions, and its errors."""

import math

import pytest
import torch
from torch import nn

from helpers.needs import peer
from loglik.networks import Encoder, ViT
from loglik.networks.positions import sinusoids

NAMES = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patches": "patch_embed.proj",
    "encoder.blocks": "blocks",
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "attention.output": "attn.proj",
    "attention.qkv": "attn.qkv",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
    "encoder.norm": "norm",
}


def to_timm(name: str) -> str:
    """Return timm's name of a weight."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_outputs_are_timms(float64, pool):
    transformer = (
        peer("timm.models.vision_transformer")
        .VisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=24,
            depth=3,
            num_heads=3,
            num_classes=0,
            global_pool="token" if pool == "class" else "avg",
            class_token=pool == "class",
            fc_norm=False,
            norm_layer=nn.LayerNorm,
        )
        .double()
    )
    ours = ViT((3, 16, 16), patch=4, width=24, depth=3, heads=3, pool=pool)
    weights = dict(transformer.named_parameters())
    assert {to_timm(name) for name in ours.state_dict()} == set(weights)
    for weight in weights.values():
        nn.init.normal_(weight, std=0.3)
    ours.load_state_dict({k: weights[to_timm(k)].detach().view_as(v) for k, v in ours.state_dict().items()})
    x = torch.randn(2, 3, 16, 16)
    features, expected = ours(x), transformer(x)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(features)
    (features * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, weights[to_timm(name)].grad.view_as(weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224"])
def test_timms_named_models_are_ours(float64, name):
    """Two blocks of them, on images of 64×64; timm's ε of 1e-6 is set to PyTorch's 1e-5, as ours is."""
    theirs = peer("timm").create_model(name, num_classes=0, img_size=64, depth=2).double()
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    width = theirs.num_features
    ours = ViT((3, 64, 64), patch=16, width=width, depth=2, heads=width // 64, pool="class")
    weights = dict(theirs.named_parameters())
    assert {to_timm(k) for k in ours.state_dict()} == set(weights)
    ours.load_state_dict({k: weights[to_timm(k)].detach().view_as(v) for k, v in ours.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    features, expected = ours(x), theirs(x)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(features)
    (features * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, weight in ours.named_parameters():
        gradient = weights[to_timm(key)].grad.view_as(weight)
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize(("width", "count"), [(192, 5_717_416), (384, 22_050_664)], ids=["tiny", "small"])
def test_parameters_are_as_published(width, count):
    """With a head for ImageNet's 1000 classes, as timm's table of models counts them."""
    with torch.device("meta"):
        network = ViT((3, 224, 224), patch=16, width=width, depth=12, heads=width // 64, pool="class")
        head = nn.Linear(network.outputs, 1000)
    assert sum(p.numel() for p in [*network.parameters(), *head.parameters()]) == count


def test_a_hybrid_is_its_parts(float64):
    """Convolutions of stride 2 with their norm and ReLU, then patches of the maps, in the order of rows."""
    network = ViT((1, 8, 12), patch=2, stem=(6,), width=8, depth=1, heads=2).eval()
    x = torch.randn(3, 1, 8, 12)
    convolution, norm, _ = network.stem
    maps = norm(nn.functional.conv2d(x, convolution.weight, stride=2, padding=1)).relu()
    assert maps.shape == (3, 6, 4, 6)
    patches = [maps[:, :, i : i + 2, j : j + 2].flatten(1) for i in range(0, 4, 2) for j in range(0, 6, 2)]
    tokens = torch.stack(patches, 1) @ network.patches.weight.flatten(1).T + network.patches.bias
    torch.testing.assert_close(network(x), network.encoder(tokens + network.positions).mean(1))


def test_layer_norm_is_its_formula(float64):
    """Moments over the features of each position; a block adds f(norm(x)) to its input x."""
    block = Encoder(8, 1, 2).blocks[0]
    norm = block.norm_attention
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 8)
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), norm.weight * scaled + norm.bias)
    h = x + block.attention(norm(x), None)
    torch.testing.assert_close(block(x, None), h + block.contract(nn.functional.gelu(block.expand(block.norm_mlp(h)))))


def test_attention_is_torchs(float64):
    block = Encoder(12, 1, 3).blocks[0].attention
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight.normal_())
        theirs.in_proj_bias.copy_(block.qkv.bias.normal_())
        theirs.out_proj.weight.copy_(block.output.weight.normal_())
        theirs.out_proj.bias.copy_(block.output.bias.normal_())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(block(x, None), theirs(x, x, x, need_weights=False)[0])


def test_without_positions_order_does_not_matter(float64):
    encoder, x, order = Encoder(8, 2, 2), torch.randn(2, 5, 8), torch.randperm(5)
    torch.testing.assert_close(encoder(x)[:, order], encoder(x[:, order]))
    placed = x + sinusoids(5, 8)
    assert (encoder(placed)[:, order] - encoder(x[:, order] + sinusoids(5, 8))).abs().max() > 1e-3


def test_sinusoids_are_the_formula():
    table = sinusoids(50, 6)
    for t in (0, 3, 49):
        for i in range(3):
            assert table[t, 2 * i].item() == pytest.approx(math.sin(t / 10_000 ** (2 * i / 6)), abs=1e-5)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(t / 10_000 ** (2 * i / 6)), abs=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize("stem", [(), (6,)], ids=["patches", "hybrid"])
def test_every_part_trains(positions, pool, stem):
    network = ViT((1, 8, 8), patch=2, stem=stem, width=8, depth=2, heads=2, positions=positions, pool=pool)
    features = network(torch.randn(3, 1, 8, 8))
    assert features.shape == (3, network.outputs)
    (features * torch.randn(8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_wrong_images_and_options_are_refused():
    with pytest.raises(ValueError, match="patches of 3 do not tile maps of 8×8"):
        ViT((1, 8, 8), patch=3)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        ViT((1, 8, 8), patch=2, width=8, heads=2)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="unknown positions 'rotary'"):
        ViT((1, 8, 8), positions="rotary")
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        ViT((1, 8, 8), pool="max")
    with pytest.raises(ValueError, match="multiple of the number of heads 3"):
        ViT((1, 8, 8), width=8, heads=3)
    with pytest.raises(ValueError, match="patches of 0 do not tile"):
        ViT((1, 8, 8), patch=0)
    with pytest.raises(ValueError, match="multiple of the number of heads 0"):
        ViT((1, 8, 8), width=8, heads=0)


def test_a_stems_batch_norm_needs_two_values():
    network, x = ViT((1, 2, 2), patch=1, stem=(4,), width=8, heads=2), torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="at least 2 examples per batch in training where maps shrink to 1×1, got 1"):
        network(x)
    assert network(x.expand(2, -1, -1, -1)).isfinite().all()
    assert network.eval()(x).isfinite().all()
    assert ViT((1, 2, 2), patch=2, width=8, heads=2)(x).isfinite().all()
