"""The U-Net, its norm, and the diffusion Transformer: shapes, gradients, and agreement with written-out formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.needs import peer
from loglik.networks import DiT, UNet
from loglik.networks.groupnorm import NormActivation
from loglik.networks.transformer import Encoder


def randomised(network, scale=0.2):
    """Perturb all weights, so that outputs are not zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network


def small(channels=1, **options):
    return UNet(
        channels, **({"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "context": 3} | options)
    )


# ---- the norm


def written_out(norm, x, context):
    y = F.group_norm(x, norm.groups, norm.weight, norm.bias, norm.eps)
    scale, shift = norm.modulation(context)[:, :, None, None].chunk(2, dim=1)
    return F.silu(y * (1 + scale) + shift)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_norm_is_group_norm_modulated_and_its_gradients_are_autograds(float64, order):
    norm = randomised(NormActivation(12, 3, context=2))
    x = (3 + 2 * torch.randn(4, 12, 3, 5)).to(memory_format=order).requires_grad_()
    context = torch.randn(4, 2, requires_grad=True)
    y, truth = norm(x, context), written_out(norm, x, context)
    torch.testing.assert_close(y, truth)
    by = torch.randn_like(y)
    inputs = (x, context, *norm.parameters())
    for ours, theirs in zip(torch.autograd.grad(y, inputs, by), torch.autograd.grad(truth, inputs, by), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_norm_has_second_derivatives_and_maps(float64):
    norm = randomised(NormActivation(4, 2, context=2))
    x, context = torch.randn(2, 4, 2, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm, (x, context))
    batches = torch.randn(3, 2, 4, 2, 2)
    mapped = torch.vmap(lambda batch: norm(batch, context))(batches)
    torch.testing.assert_close(mapped, torch.stack([norm(batch, context) for batch in batches]))


def test_the_norm_in_bfloat16_is_close():
    norm, x, context = randomised(NormActivation(8, 2, context=2)), torch.randn(4, 8, 6, 6), torch.randn(4, 2)
    rounded = norm(x.bfloat16(), context)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), norm(x, context), rtol=0.03, atol=0.03)


# ---- the U-Net


@pytest.mark.parametrize("channels, height, width", [(1, 28, 28), (3, 8, 8), (1, 7, 10), (2, 1, 1), (3, 5, 16)])
def test_images_of_any_size_and_channels_keep_their_size(channels, height, width):
    network = randomised(small(channels, multipliers=(1, 1, 2), attention=(2,)))
    x, context = torch.randn(2, channels, height, width), torch.randn(2, 3)
    y = network(x, context)
    assert y.shape == x.shape and y.isfinite().all()
    assert small(channels, outputs=5)(x, context).shape == (2, 5, height, width)


def test_images_are_padded_with_zeros_and_cropped():
    network, x, context = randomised(small()), torch.randn(2, 1, 7, 5), torch.randn(2, 3)
    padded = network(F.pad(x, (0, 1, 0, 1)), context)
    torch.testing.assert_close(network(x, context), padded[:, :, :7, :5])


def test_the_network_starts_by_giving_zeros_and_its_blocks_as_the_identity():
    network = small()
    assert network(torch.randn(2, 1, 8, 8), torch.randn(2, 3)).abs().max() == 0
    h = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(network.down[0][0](h, torch.randn(2, 32)), h)


def test_the_vector_reaches_every_block_and_every_parameter_trains():
    network, x, context = randomised(small(blocks=2)), torch.randn(2, 1, 8, 8), torch.randn(2, 3, requires_grad=True)
    network(x, context).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    blocks = [m for m in network.modules() if type(m).__name__ == "_Block"]
    assert len(blocks) == 9 and context.grad.abs().sum() > 0
    h, one, other = torch.randn(2, 8, 4, 4), torch.randn(2, 32), torch.randn(2, 32)
    for block in blocks:
        h = torch.randn(2, block.first.in_channels, 4, 4)
        assert (block(h, one) - block(h, other)).abs().max() > 1e-3


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_changes_nothing(float64, order):
    network, x, context = randomised(small(3)), torch.randn(2, 3, 6, 6), torch.randn(2, 3)
    plain = network(x, context)
    torch.testing.assert_close(network.to(memory_format=order)(x.to(memory_format=order), context), plain)


def test_outputs_do_not_depend_on_the_batch(float64):
    network, x, context = randomised(small()), torch.randn(4, 1, 6, 6), torch.randn(4, 3)
    torch.testing.assert_close(network(x, context)[1:3], network(x[1:3], context[1:3]))


def test_a_network_without_context_is_unmodulated():
    network, x = randomised(small(context=0)), torch.randn(2, 1, 8, 8)
    assert network(x).shape == x.shape


def test_a_block_is_diffusers(float64):
    resnet = peer("diffusers.models.resnet")
    network = randomised(small(groups=2, attention=()))
    ours = network.up[1][0]
    theirs = resnet.ResnetBlock2D(
        in_channels=32, out_channels=16, temb_channels=32, groups=2, eps=1e-5, time_embedding_norm="scale_shift"
    )
    pairs = {
        "norm1": ours.first_norm, "conv1": ours.first, "conv2": ours.second,
        "conv_shortcut": ours.shortcut, "time_emb_proj": ours.second_norm.modulation,
    }  # fmt: skip
    with torch.no_grad():
        for name, layer in pairs.items():
            getattr(theirs, name).weight.copy_(layer.weight)
            getattr(theirs, name).bias.copy_(layer.bias)
        theirs.norm2.weight.copy_(ours.second_norm.weight)
        theirs.norm2.bias.copy_(ours.second_norm.bias)
    x, vector = torch.randn(2, 32, 5, 5), torch.randn(2, 32)
    # diffusers applies SiLU to the vector in each block, ours once
    torch.testing.assert_close(ours(x, F.silu(vector)), theirs(x, vector))


def test_wrong_networks_and_images_are_refused():
    with pytest.raises(ValueError, match=r"images of 1 channels, got .3, 8, 8."):
        small()(torch.randn(1, 3, 8, 8), torch.randn(1, 3))
    with pytest.raises(ValueError, match="10 channels must be a multiple of the number of groups 8"):
        UNet(1, width=10)
    with pytest.raises(ValueError, match=r"attention must name levels among 0 \.\.\. 1, got \(2,\)"):
        small(attention=(2,))
    with pytest.raises(ValueError, match="multiple of the number of heads 3"):
        small(heads=3)
    with pytest.raises(ValueError, match=r"use multipliers and blocks of at least 1, got .1, 2. and 0"):
        small(blocks=0)


# ---- the Transformer


def test_without_modulation_its_blocks_are_a_vision_transformers(float64):
    network, encoder = DiT((1, 4, 4), width=8, depth=2, heads=2, context=3), Encoder(8, 2, 2)
    encoder.load_state_dict(network.encoder.state_dict())
    h = torch.randn(2, 4, 8)
    modulation = torch.zeros(2, 6 * 8)
    modulation[:, 16:24] = modulation[:, 40:48] = 1  # open the gates
    opened = h
    for block in network.encoder.blocks:
        opened = block(opened, modulation=modulation)
    torch.testing.assert_close(network.encoder.norm(opened), encoder(h))


@pytest.mark.parametrize("shape, outputs", [((1, 8, 8), None), ((3, 5, 6), 4), ((1, 1, 1), None)])
def test_the_transformer_gives_images_of_the_same_size_from_zero(shape, outputs):
    network = DiT(shape, outputs, width=8, depth=2, heads=2, context=3)
    x, context = torch.randn(2, *shape), torch.randn(2, 3)
    y = network(x, context)
    assert y.shape == (2, outputs or shape[0], *shape[1:]) and y.abs().max() == 0
    randomised(network)(x, context).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_patches_keep_their_positions(float64):
    network = DiT((1, 4, 6), patch=2, width=4, depth=0, heads=1, context=2)
    with torch.no_grad():  # the maps send the four pixels to the vector and back
        network.patches.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        network.patches.bias.zero_()
        network.positions.zero_()
        network.output.weight.copy_(torch.eye(4))
    network.encoder.norm = nn.Identity()
    x = torch.randn(2, 1, 4, 6)
    torch.testing.assert_close(network(x, torch.zeros(2, 2)), x)


def test_the_transformer_refuses_other_images():
    network = DiT((1, 4, 4), width=8, depth=1, heads=2, context=3)
    with pytest.raises(ValueError, match=r"images of shape \(1, 4, 4\), got \(1, 5, 4\)"):
        network(torch.randn(1, 1, 5, 4), torch.randn(1, 3))
    with pytest.raises(ValueError, match="multiple of the number of heads 3"):
        DiT((1, 4, 4), width=8, heads=3, context=3)
