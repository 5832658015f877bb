"""Permutation errors: attention acts on a set until positions are added."""

import math

import numpy as np
import torch
from torch import nn

from loglik.data import as_data
from loglik.inspection import inspect, permutation_error, permutation_errors
from loglik.networks import MLP, BlockSettings, CausalTransformer, Encoder
from loglik.recipes import build


def test_attention_is_a_map_of_sets_until_positions_are_added():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    assert permutation_error(layer, x) < 1e-12
    assert permutation_error(layer, x, torch.randn(7, 8, dtype=torch.float64)) > 0.1
    assert permutation_error(Encoder(8, 2, 2).double(), x) < 1e-12
    assert permutation_error(CausalTransformer(8, 1, 2).double(), x) > 1e-6  # the mask is an order


def test_permutations_are_those_of_the_network_as_it_runs():
    """Positions enter before the norm of the first block, on the scale of the embedded patches: by hand."""
    torch.manual_seed(0)
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3))
    density = build("classifier", data.spec, network="vit", width=32).eval()
    vit = density.features
    found = {row.layer: row for row in inspect(density, data).permutations}
    assert list(found) == ["features.encoder.blocks.0.attention", "features.encoder"]

    part = data.split(data.scored_split)
    positions = vit.positions.detach()
    with torch.no_grad():
        content = vit.patches(density.prepare(part.x[:16])).flatten(2).transpose(1, 2)
        order = torch.randperm(content.shape[1], generator=torch.Generator().manual_seed(0))
        block = vit.encoder.blocks[0]
        layers = {
            "features.encoder.blocks.0.attention": lambda h: block.attention(block.norm_attention(h)),
            "features.encoder": vit.encoder,
        }
        for name, layer in layers.items():
            still, moved = layer(content + positions), layer(content[:, order] + positions)
            by_hand = float((still[:, order] - moved).norm() / still.norm())
            assert found[name].without < 2e-6
            assert found[name].with_positions > 1000 * found[name].without
            assert math.isclose(found[name].with_positions, by_hand, rel_tol=1e-3)
        vit.positions.zero_()
    for row in inspect(density, data).permutations:
        assert row.without < 2e-6 and row.with_positions is None


def test_permutations_of_blocks_in_a_row_and_of_rotations():
    x = torch.randn(4, 6, 16)

    class Posed(nn.Module):
        """Positions by another name, after the embedding's norm, and blocks that a list holds."""

        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, 6, 16))
            layer = {"nhead": 2, "dim_feedforward": 16, "batch_first": True}
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, **layer) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x + self.pos_embed
            for layer in self.layers:
                h = layer(h)
            return h.mean(1)

    torch.manual_seed(0)
    posed = Posed()
    first, whole = permutation_errors(posed, lambda: posed(x))
    assert (first.layer, whole.layer) == ("layers.0.self_attn", "layers.1")
    assert max(first.without, whole.without) < 2e-6
    chain = nn.Sequential(*posed.layers)
    by_hand = permutation_error(chain, x, posed.pos_embed[0].detach())
    assert math.isclose(whole.with_positions, by_hand, rel_tol=1e-3)

    rotary = Encoder(16, 1, 2, settings=BlockSettings(rotary=True))
    rotary.blocks[0].attention.qkv.weight.data *= 20
    for row in permutation_errors(rotary, lambda: rotary(x)):
        assert row.without < 2e-6 < 1e-3 < row.with_positions
    for blocks in (None, BlockSettings(rotary=True)):
        causal = CausalTransformer(16, 1, 2, settings=blocks)
        assert all(row.without > 1e-4 for row in permutation_errors(causal, lambda: causal(x)))  # noqa: B023
    assert permutation_errors(MLP(16, 2, (4,)), lambda: None) == []


def test_a_random_order_of_two_is_not_the_same_order():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x, positions = torch.randn(2, 2, 8), torch.randn(2, 8)
    assert all(permutation_error(layer, x, positions, seed=seed) > 0.01 for seed in range(4))
