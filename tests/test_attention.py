"""Attention against torch's and against its formula, for every mask; positions; every kind of block."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loglik.networks import BlockSettings, CausalTransformer, Decoder, Encoder, EncoderDecoder
from loglik.networks.attention import (
    ATTENTION_TYPES,
    Attention,
    CrossAttention,
    KeyValueCache,
    SelfAttention,
    attention,
    attention_formula,
    attention_weights,
    causal_mask,
    padding_mask,
)
from loglik.networks.linear import Linear
from loglik.networks.positions import rotate, rotations, sinusoids

B, H, T, S, D = 3, 2, 5, 7, 4
EVERY = [
    BlockSettings(norm=norm, norm_position=position, mlp=mlp, qk_norm=own, rotary=own, bias=not own)
    for norm, position, mlp, own in itertools.product(
        ("layer", "rms"), ("pre", "post"), ("gelu", "squared_relu", "swiglu"), (False, True)
    )
]
CLOSE = {"rtol": 0, "atol": 1e-6}


def masks(queries: int, keys: int) -> dict[str, torch.Tensor | None]:
    some = torch.rand(B, H, queries, keys) < 0.5
    some[..., 0] = True
    return {"none": None, "padding": padding_mask(torch.tensor([2, keys, 1]), keys), "any": some}


def scatter(module: nn.Module, std: float = 0.3) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "padding", "any"])
@pytest.mark.parametrize(("queries", "keys"), [(T, T), (T, S), (1, S)])
def test_attention_is_torchs_and_the_formulas(float64, kind, causal, queries, keys):
    q, k, v = torch.randn(B, H, queries, D), torch.randn(B, H, keys, D), torch.randn(B, H, keys, D)
    mask = masks(queries, keys)[kind]
    allowed = torch.ones(B, H, queries, keys, dtype=torch.bool) if mask is None else mask
    if causal:
        allowed = allowed & causal_mask(queries, keys)
    ours = attention(q, k, v, mask, causal=causal)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), **CLOSE)
    torch.testing.assert_close(ours, attention_formula(q, k, v, mask, causal=causal), **CLOSE)
    weights = attention_weights(q, k, mask, causal=causal)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, queries))
    assert (weights[~allowed.expand_as(weights)] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "padding", "any"])
def test_self_attention_is_torchs_module(float64, kind, causal):
    """With the same weights, its output and its maps."""
    ours, theirs = SelfAttention(H * D, H, causal=causal), nn.MultiheadAttention(H * D, H, batch_first=True)
    scatter(ours)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    x, mask = torch.randn(B, T, H * D), masks(T, T)[kind]
    allowed = torch.ones(B, H, T, T, dtype=torch.bool) if mask is None else mask.expand(B, H, T, T)
    if causal:
        allowed = allowed & causal_mask(T, T)
    truth, weights = theirs(x, x, x, attn_mask=~allowed.flatten(0, 1), average_attn_weights=False)
    torch.testing.assert_close(ours(x, mask), truth, **CLOSE)
    torch.testing.assert_close(ours.maps(x, mask), weights, **CLOSE)


@pytest.mark.parametrize("kind", ["none", "padding", "any"])
def test_cross_attention_is_torchs_module(float64, kind):
    ours, theirs = CrossAttention(H * D, H), nn.MultiheadAttention(H * D, H, batch_first=True)
    scatter(ours)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.q.weight, ours.kv.weight]),
            "in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias]),
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    x, memory, mask = torch.randn(B, T, H * D), torch.randn(B, S, H * D), masks(T, S)[kind]
    blocked = None if mask is None else ~mask.expand(B, H, T, S).flatten(0, 1)
    truth, weights = theirs(x, memory, memory, attn_mask=blocked, average_attn_weights=False)
    torch.testing.assert_close(ours(x, memory, mask), truth, **CLOSE)
    torch.testing.assert_close(ours.maps(x, memory, mask), weights, **CLOSE)
    if kind != "any":
        cache = KeyValueCache(B, T)
        parts = [ours(part, memory, mask, cache) for part in x.split(1, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), truth, **CLOSE)


def test_gradients_of_attention_are_the_formulas(float64):
    q, k, v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    direction = torch.randn(B, H, T, D)
    for mask, causal in itertools.product(masks(T, T).values(), (False, True)):
        pairs = [
            torch.autograd.grad((f(q, k, v, mask, causal=causal) * direction).sum(), (q, k, v))
            for f in (attention, attention_formula)
        ]
        for ours, truth in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, truth, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "padding", "any"])
@pytest.mark.parametrize(("queries", "keys"), [(T, T), (T, S), (1, S)])
def test_attention_in_bfloat16_is_the_formula_rounded(kind, causal, queries, keys):
    q, k, v = (torch.randn(B, H, n, D).bfloat16() for n in (queries, keys, keys))
    mask = masks(queries, keys)[kind]
    ours = attention(q, k, v, mask, causal=causal)
    assert ours.dtype == torch.bfloat16
    truth = attention_formula(q.float(), k.float(), v.float(), mask, causal=causal)
    torch.testing.assert_close(ours.float(), truth, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_map_of_many_vectors_is_the_same_map(bias):
    """Output and gradients are equal with oneDNN and without, and for each position alone."""
    layer, plain = Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    plain.load_state_dict(layer.state_dict())
    for shape in ((64, 16, 24), (16, 80, 24), (3, 16, 24), (70, 17, 24), (640, 24)):
        x, direction = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 40)
        ours, truth = layer(x), plain(x)
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, truth)
        pairs = [
            torch.autograd.grad((y * direction).sum(), (x, *m.parameters())) for y, m in ((ours, layer), (truth, plain))
        ]
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    x = torch.randn(64, 32, 24)
    y, changed = layer(x), x.clone()
    changed[:, 20:] = 0
    assert torch.equal(layer(changed)[:, :20], y[:, :20])


def test_rotations_turn_planes_and_products_see_distances_only(float64):
    table = rotations(50, 6, torch.zeros(()))
    assert table.shape == (2, 50, 3)
    assert table[0, 7, 1].item() == pytest.approx(math.cos(7 / 10_000 ** (2 / 6)))
    q, k = torch.randn(1, 1, 1, 6), torch.randn(1, 1, 1, 6)
    turned_q, turned_k = rotate(q.expand(1, 1, 50, 6), table), rotate(k.expand(1, 1, 50, 6), table)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1).expand(1, 1, 50))
    products = (turned_q @ turned_k.transpose(-2, -1))[0, 0]
    for distance in (-3, 0, 8):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert (products[0] - products[0, 0]).abs().max() > 1e-2


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_every_block_is_causal_cached_and_trained(float64, settings):
    """Exactly causal, equal with a cache, equivariant without positions, and each parameter has a gradient."""
    causal, encoder = (scatter(kind(H * D, 2, H, settings=settings)) for kind in (CausalTransformer, Encoder))
    x, order = torch.randn(B, T, H * D), torch.tensor([3, 0, 4, 1, 2])
    y = causal(x)
    for t in range(T):
        changed = x.clone()
        changed[:, t:] = torch.randn(B, T - t, H * D)
        assert torch.equal(causal(changed)[:, :t], y[:, :t])
    for parts in ([1] * T, [2, 3], [T]):
        cache = causal.cache(B, T)
        torch.testing.assert_close(torch.cat([causal(piece, cache) for piece in x.split(parts, 1)], 1), y, **CLOSE)
    permuted = (encoder(x)[:, order] - encoder(x[:, order])).abs().max()
    assert permuted > 1e-3 if settings.rotary else permuted < 1e-6
    placed = x + sinusoids(T, H * D)
    assert (encoder(placed)[:, order] - encoder(x[:, order] + sinusoids(T, H * D))).abs().max() > 1e-3
    for network in (causal, encoder):
        (network(x) * torch.randn(H * D)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_padding_is_never_seen(float64):
    """A sequence has the same features alone as beside a longer one."""
    encoder = scatter(Encoder(H * D, 2, H))
    x = torch.randn(2, T, H * D)
    together = encoder(x, padding_mask(torch.tensor([3, T]), T))
    torch.testing.assert_close(together[:1, :3], encoder(x[:1, :3]), **CLOSE)
    torch.testing.assert_close(together[1:], encoder(x[1:]), **CLOSE)


@pytest.mark.parametrize("settings", [BlockSettings(), EVERY[-1]], ids=["default", "all"])
def test_a_decoder_sees_its_past_and_the_source(float64, settings):
    network = EncoderDecoder(Encoder(8, 1, 2, settings=settings), Decoder(8, 2, 2, settings=settings))
    scatter(network)
    source, target = torch.randn(2, S, 8), torch.randn(2, T, 8)
    mask = padding_mask(torch.tensor([4, S]), S)
    y = network(source, target, mask)
    later, padding, seen = target.clone(), source.clone(), source.clone()
    later[:, 3:] += torch.randn(8)
    assert torch.equal(network(source, later, mask)[:, :3], y[:, :3])
    padding[0, 4:] += torch.randn(8)
    torch.testing.assert_close(network(padding, target, mask), y)
    seen[:, 1] += torch.randn(8)
    assert not torch.isclose(network(seen, target, mask), y).all(-1).any()
    memory, cache = network.encoder(source, mask), network.decoder.cache(2, T)
    parts = [network.decoder(part, memory, mask, cache) for part in target.split([2, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), y, **CLOSE)
    (y * torch.randn(8)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_swiglu_has_as_many_weights_as_gelu():
    counts = [
        sum(p.numel() for p in CausalTransformer(96, 1, 4, settings=BlockSettings(mlp=mlp, bias=False)).parameters())
        for mlp in ("gelu", "swiglu")
    ]
    assert counts[0] == counts[1]


def test_the_cache_is_written_in_place():
    network = CausalTransformer(8, 1, 2).eval()
    cache = network.cache(2, 6)
    network(torch.randn(2, 4, 8), cache)
    keys = cache.pairs[0][0]
    assert keys.shape == (2, 2, 6, 4) and cache.length == 4
    network(torch.randn(2, 2, 8), cache)
    assert cache.pairs[0][0] is keys
    with pytest.raises(ValueError, match="the cache has room for 6 positions, got 7"):
        network(torch.randn(2, 1, 8), cache)
    cache.clear()
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(network(x, cache), network(x))
    assert cache.pairs[0][0] is keys


def test_attention_is_found_by_type():
    decoder = Decoder(8, 3, 2)
    found = [type(module) for module in decoder.modules() if isinstance(module, Attention)]
    assert found == 3 * [SelfAttention, CrossAttention]
    assert isinstance(nn.MultiheadAttention(8, 2), ATTENTION_TYPES) and not isinstance(decoder, ATTENTION_TYPES)


def test_wrong_settings_are_refused():
    for name in ("norm", "norm_position", "mlp"):
        with pytest.raises(ValueError, match=f"unknown {name} 'other': use "):
            BlockSettings(**{name: "other"})
    with pytest.raises(ValueError, match=r"heads of an even size, got 9 / 3 = 3"):
        CausalTransformer(9, 1, 3, settings=BlockSettings(rotary=True))
    with pytest.raises(ValueError, match="must have the same width, got 8 and 4"):
        EncoderDecoder(Encoder(8, 1, 2), Decoder(4, 1, 2))
    with pytest.raises(ValueError, match=r"lengths must be 1 ... 5, got 0 ... 3"):
        padding_mask(torch.tensor([0, 3]), 5)
