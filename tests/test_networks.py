"""The networks: shapes, starts, and attention against its formula."""

import math

import pytest
import torch
from torch import nn

from loglik.networks import MLP, CausalTransformer, ResidualMLP
from loglik.networks.norms import batch_norm_formula, layer_norm_formula, make_norm, rms_norm_formula


def test_mlp_by_hand(float64):
    network = MLP(3, 2, (4,), context=2)
    x, context = torch.randn(5, 3), torch.randn(5, 2)
    hidden = network.body[0]
    h = torch.nn.functional.silu(torch.cat([x, context], 1) @ hidden.weight.T + hidden.bias)
    torch.testing.assert_close(network(x, context), h @ network.output.weight.T + network.output.bias)


def test_an_mlps_norms_are_their_formulas(float64):
    """Between linear map and activation: moments over the batch, or over each example's features."""
    x = torch.randn(7, 3)
    for norm, dim in (("batch", 0), ("layer", 1)):
        network = MLP(3, 2, (5,), norm=norm)
        linear, scale, _ = network.body
        nn.init.normal_(scale.weight)
        nn.init.normal_(scale.bias)
        h = linear(x)
        moments = h.mean(dim, keepdim=True), h.var(dim, correction=0, keepdim=True)
        for _ in range(2):
            h = scale.weight * (linear(x) - moments[0]) / (moments[1] + 1e-5).sqrt() + scale.bias
            torch.testing.assert_close(network(x), network.output(nn.functional.silu(h)))
            network.eval()
            if norm == "batch":
                moments = scale.running_mean, scale.running_var


def test_norms_are_their_formulas(float64):
    """torch's modules, in training and evaluation, for vectors, sequences and images."""
    for kind, formula in (("layer", layer_norm_formula), ("rms", rms_norm_formula)):
        norm = make_norm(kind, 6)
        learned = [nn.init.normal_(parameter) for parameter in norm.parameters()]
        for h in (torch.randn(4, 6), torch.randn(2, 5, 6)):
            torch.testing.assert_close(norm(h), formula(h, *learned))
    for h in (torch.randn(4, 6), torch.randn(3, 6, 5, 2)):
        norm = make_norm("batch", 6, image=h.dim() == 4)
        learned = [nn.init.normal_(parameter) for parameter in norm.parameters()]
        torch.testing.assert_close(norm(h), batch_norm_formula(h, *learned))
        moments = norm.running_mean, norm.running_var
        assert not torch.equal(moments[0], torch.zeros(6))
        torch.testing.assert_close(norm.eval()(h), batch_norm_formula(h, *learned, moments=moments))
    assert make_norm("layer", 6, bias=False).bias is None
    with pytest.raises(ValueError, match="unknown norm 'group': use layer, batch or rms"):
        make_norm("group", 6)


def test_batch_norm_needs_two_examples():
    network, x = MLP(3, 2, (4,), norm="batch"), torch.randn(1, 3)
    with pytest.raises(ValueError, match="at least 2 examples per batch in training, got 1: use norm='layer'"):
        network(x)
    assert network.eval()(x).shape == (1, 2)
    assert MLP(3, 2, (4,), norm="layer")(x).shape == (1, 2)
    with pytest.raises(ValueError, match="unknown norm 'group': use none, batch or layer"):
        MLP(3, 2, norm="group")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_an_mlp_is_features_for_any_head(activation):
    for network in (MLP(3, 6, (4,), activation=activation), ResidualMLP(3, 6, width=4)):
        assert nn.Linear(network.outputs, 2)(network(torch.randn(5, 3))).shape == (5, 2)
    assert isinstance(MLP(3, 6, (4,), activation=activation).body[1], activation)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_any_shape_is_flattened(shape):
    x = torch.randn(4, *shape)
    for network in (MLP(6, 3, (8,)), ResidualMLP(6, 3, width=8, depth=1)):
        assert network(x).shape == (4, 3)
        assert torch.equal(network(x), network(x.flatten(1)))


def test_dropout_is_for_training():
    network = MLP(6, 3, (32,), dropout=0.5)
    x = torch.randn(4, 6)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    assert sum(isinstance(m, nn.Dropout) for m in MLP(6, 3, (32,)).modules()) == 0


def test_residual_blocks_start_as_the_identity(float64):
    network = ResidualMLP(3, 2, width=8, depth=3, context=4)
    x = torch.randn(5, 3)
    truth = network.output(network.norm(network.input(x)))
    torch.testing.assert_close(network(x, torch.randn(5, 4)), truth)


def test_residual_block_is_its_formula(float64):
    network = ResidualMLP(3, 2, width=8, depth=1, context=4)
    block = network.blocks[0]
    nn.init.normal_(block.second.weight)
    h, context = torch.randn(5, 8), torch.randn(5, 4)
    scale, shift = block.modulation(context).split(8, dim=1)
    inner = block.first(block.norm(h)) * (1 + scale) + shift
    torch.testing.assert_close(block(h, context), h + block.second(inner * inner.sigmoid()))


def test_attention_is_its_formula(float64):
    """softmax(QKᵀ / √d_k) V with loops over heads and positions."""
    width, heads, length = 6, 3, 5
    attention = CausalTransformer(width, 1, heads).blocks[0].attention
    nn.init.normal_(attention.qkv.weight)
    x = torch.randn(2, length, width)
    q, k, v = attention.qkv(x).split(width, dim=-1)
    size = width // heads
    truth = torch.zeros(2, length, width)
    for b in range(2):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(length):
                scores = torch.stack([q[b, t, part] @ k[b, s, part] / math.sqrt(size) for s in range(t + 1)])
                weights = scores.exp() / scores.exp().sum()
                truth[b, t, part] = sum(weights[s] * v[b, s, part] for s in range(t + 1))
    torch.testing.assert_close(attention(x, None), attention.output(truth))


def test_transformer_is_causal_and_uses_the_past():
    network = CausalTransformer(8, 2, 2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 6, 8)
    y = network(x)
    for t in range(6):
        changed = x.clone()
        changed[:, t] = torch.randn(8)
        z = network(changed)
        assert torch.equal(z[:, :t], y[:, :t])
        assert not torch.isclose(z[:, t:], y[:, t:]).all(-1).any()


@pytest.mark.parametrize("parts", [[1] * 6, [3, 3], [4, 1, 1]])
def test_the_cache_gives_the_same_features(float64, parts):
    network = CausalTransformer(8, 2, 2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 6, 8)
    cache = network.cache(3, 6)
    pieces = [network(piece, cache) for piece in x.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), network(x))
    assert cache.length == 6


def test_transformer_starts_like_gpt2():
    network = CausalTransformer(64, 8, 4)
    block = network.blocks[3]
    assert abs(block.attention.qkv.weight.std() - 0.02) < 1e-3
    assert abs(block.expand.weight.std() - 0.02) < 1e-3
    for residual in (block.attention.output.weight, block.contract.weight):
        assert abs(residual.std() - 0.02 / 4) < 5e-4
    assert block.expand.bias.abs().max() == 0 and network.norm.weight.unique().tolist() == [1]


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 must be a multiple of the number of heads 4"):
        CausalTransformer(10, 1, 4)
