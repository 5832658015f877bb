"""What the guide's pages on networks derive beyond the library's own formulas, and the numbers of their exercises."""

import math

import pytest
import torch
from torch import nn

from loglik.classification import Classifier
from loglik.classification.inputs import Levels
from loglik.inspection import layer_counts, receptive_fields
from loglik.networks import ViT
from loglik.networks.attention import SelfAttention, attention_formula, attention_weights
from loglik.networks.norms import batch_norm_formula, layer_norm_formula, rms_norm_formula
from loglik.networks.positions import sinusoids
from loglik.networks.transformer import Encoder


def test_the_softmax_has_its_derivative(float64):
    scores = torch.randn(5)
    weights = scores.softmax(0)
    jacobian = torch.autograd.functional.jacobian(lambda s: s.softmax(0), scores)
    torch.testing.assert_close(jacobian, torch.diag(weights) - weights[:, None] * weights)


def test_a_softmax_summed_in_blocks_is_attention(float64):
    q, k, v = (torch.randn(1, 1, 12, 4) for _ in range(3))
    largest, z, o = torch.full((12, 1), -torch.inf), torch.zeros(12, 1), torch.zeros(12, 4)
    for keys, values in zip(k[0, 0].split(5), v[0, 0].split(5), strict=True):
        scores = q[0, 0] @ keys.T / 2
        after = torch.maximum(largest, scores.max(1, keepdim=True).values)
        terms, shrink = (scores - after).exp(), (largest - after).exp()
        z, o, largest = z * shrink + terms.sum(1, keepdim=True), o * shrink + terms @ values, after
    torch.testing.assert_close(o / z, attention_formula(q, k, v)[0, 0])


def test_heads_are_added_each_by_its_block_of_the_output_map(float64):
    attention, x = SelfAttention(12, 3, bias=False), torch.randn(2, 5, 12)
    q, k, v = attention._project(x, None)
    heads = attention_weights(q, k) @ v
    blocks = attention.output.weight.T.split(4)
    torch.testing.assert_close(attention(x), sum(heads[:, i] @ blocks[i] for i in range(3)))


def test_attention_without_queries_is_the_mean_of_the_values(float64):
    attention, x = SelfAttention(8, 2, bias=False), torch.randn(1, 5, 8)
    with torch.no_grad():
        attention.qkv.weight[:8] = 0
    mean = (x @ attention.qkv.weight[16:].T).mean(1) @ attention.output.weight.T
    torch.testing.assert_close(attention(x), mean[:, None].expand(1, 5, 8))


def test_a_shift_of_sinusoids_is_a_rotation(float64):
    table, k = sinusoids(40, 6).double(), 7
    rates = torch.tensor([10_000 ** (-2 * i / 6) for i in range(3)])
    pairs, (cos, sin) = table.unflatten(1, (3, 2)), ((k * rates).cos(), (k * rates).sin())
    moved = torch.stack([cos * pairs[..., 0] + sin * pairs[..., 1], cos * pairs[..., 1] - sin * pairs[..., 0]], -1)
    torch.testing.assert_close(moved[:-k], pairs[k:], rtol=0, atol=1e-5)
    torch.testing.assert_close((table[:-k] * table[k:]).sum(1), cos.sum().expand(40 - k), rtol=0, atol=1e-5)


def test_layer_norm_has_its_jacobian_and_ignores_shift_and_scale(float64):
    h, one, zero = torch.randn(6), torch.ones(6), torch.zeros(6)
    jacobian = torch.autograd.functional.jacobian(lambda h: layer_norm_formula(h, one, zero, 0.0), h)
    hat, s = layer_norm_formula(h, one, zero, 0.0), h.std(correction=0)
    torch.testing.assert_close(jacobian, (torch.eye(6) - 1 / 6 - hat[:, None] * hat / 6) / s)
    torch.testing.assert_close(layer_norm_formula(3 * h + 2, one, zero, 0.0), hat)
    torch.testing.assert_close(rms_norm_formula(h - h.mean(), one, 0.0), hat)


def test_batch_norm_loses_the_input_in_batches_of_one_and_two(float64):
    scale, shift = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(batch_norm_formula(torch.randn(1, 3), scale, shift)[0], shift)
    two = batch_norm_formula(torch.randn(2, 3), scale, shift, 0.0)
    torch.testing.assert_close((two - shift).abs(), scale.abs().expand(2, 3))


def test_padding_with_zeros_moves_the_moments_of_batch_norm(float64):
    h, r = torch.randn(300, 1) + 2, 0.25
    padded, mean, variance = torch.cat([h, torch.zeros(100, 1)]), h.mean(0), h.var(0, correction=0)
    one, zero = torch.ones(1), torch.zeros(1)
    moments = (1 - r) * mean, (1 - r) * (variance + r * mean**2)
    expected = batch_norm_formula(padded, one, zero, moments=moments)
    torch.testing.assert_close(batch_norm_formula(padded, one, zero), expected)


def test_a_running_average_is_a_geometric_sum(float64):
    norm, batches = nn.BatchNorm1d(2, momentum=0.1), torch.randn(30, 8, 2)
    for batch in batches:
        norm(batch)
    weights = 0.1 * 0.9 ** torch.arange(29, -1, -1)
    torch.testing.assert_close(norm.running_mean, (weights[:, None] * batches.mean(1)).sum(0))
    assert round(0.9**30, 2) == 0.04
    assert sum(0.1**2 * 0.9 ** (2 * j) for j in range(1000)) == pytest.approx(1 / 19)


def test_batch_norm_folds_into_the_linear_map_before_it(float64):
    linear, norm, x = nn.Linear(4, 3), nn.BatchNorm1d(3), torch.randn(9, 4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm(linear(x)).square().sum().backward()
    assert linear.bias.grad.abs().max() < 1e-10
    norm.eval()
    s = (norm.running_var + norm.eps).sqrt()
    weight = (norm.weight / s)[:, None] * linear.weight
    bias = norm.weight * (linear.bias - norm.running_mean) / s + norm.bias
    torch.testing.assert_close(norm(linear(x)), x @ weight.T + bias)


def test_convolution_is_what_commutes_with_translations(float64):
    x, unit = torch.randn(1, 1, 16), torch.zeros(1, 1, 16)
    unit[..., 0] = 1
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    torch.testing.assert_close(layer(x.roll(5, -1)), layer(x).roll(5, -1))
    answer = layer(unit)
    torch.testing.assert_close(layer(x), sum(x[..., q : q + 1] * answer.roll(q, -1) for q in range(16)))


def test_the_field_of_resnets_first_layers():
    strides = [(7, 2), (3, 2), *[(3, 1)] * 4]
    network = nn.Sequential(*(nn.Conv2d(1, 1, k, s) for k, s in strides))
    fields = receptive_fields(network, torch.randn(1, 1, 64, 64))
    assert [f.size[0] for f in fields if f.layer != "(network)"] == [7, 11, 19, 27, 35, 43]


def test_a_convolution_against_a_dense_layer():
    convolution = nn.Conv2d(64, 64, 3, padding=1)
    (row,) = layer_counts(convolution, lambda: convolution(torch.randn(1, 64, 56, 56)))
    assert row.parameters == 36_928
    with torch.device("meta"):
        dense = nn.Linear(56 * 56 * 64, 56 * 56 * 64)
    assert sum(p.numel() for p in dense.parameters()) == 40_282_296_320


def test_the_effective_field_of_equal_kernels_grows_with_the_root_of_depth(float64):
    x = torch.zeros(1, 1, 81)
    x[..., 40] = 1
    for _ in range(20):
        x = nn.functional.conv1d(x, torch.full((1, 1, 3), 1 / 3), padding=1)
    places = torch.arange(81) - 40.0
    assert (x.flatten() * places**2).sum().sqrt() == pytest.approx(math.sqrt(20 * (3**2 - 1) / 12))


def test_a_gradient_keeps_its_norm_with_jacobians_of_the_right_size(float64):
    """The bounds by singular values, for a plain product and one with shortcuts."""
    jacobians = [torch.randn(6, 6) / 4 for _ in range(5)]
    values = [torch.linalg.svdvals(j) for j in jacobians]
    plain = shortcut = v = torch.randn(6)
    for j in jacobians:
        plain, shortcut = plain @ j, shortcut + shortcut @ j
    lower, upper = math.prod(float(s[-1]) for s in values), math.prod(float(s[0]) for s in values)
    assert lower <= plain.norm() / v.norm() <= upper
    assert shortcut.norm() / v.norm() <= math.prod(1 + float(s[0]) for s in values)


def test_blocks_and_the_hybrid_have_their_parameters():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    for width in (32, 96):
        assert count(Encoder(width, 1, 4).blocks[0]) == 12 * width**2 + 13 * width
    for options, total in (({"stem": (48,), "patch": 2}, 244_282), ({"patch": 4}, 226_858)):
        network = ViT((1, 8, 8), width=96, depth=2, heads=3, **options)
        assert count(Classifier(network, nn.Linear(96, 10), 10, prepare=Levels(17))) == total


def test_tokens_of_the_hybrid_see_five_pixels():
    network = ViT((1, 16, 16), stem=(4,), patch=2, width=8, depth=1, heads=2)
    (field,) = [f for f in receptive_fields(network, torch.randn(1, 1, 16, 16)) if f.layer == "patches"]
    assert field.size == (5, 5) and field.jump == (4, 4)


def test_shuffled_patches_have_the_same_probabilities_without_positions(float64):
    network = ViT((1, 8, 8), patch=4, width=8, depth=2, heads=2, positions="none").eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(x), network(x.roll(4, -1)))
    stem = ViT((1, 8, 8), stem=(4,), patch=2, width=8, depth=2, heads=2, positions="none").eval()
    assert (stem(x) - stem(x.roll(4, -1))).abs().max() > 1e-6
