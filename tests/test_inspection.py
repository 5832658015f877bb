"""`inspect`: attention maps, and the same measurements on a GPU."""

import math

import numpy as np
import pytest
import torch

from loglik.data import as_data
from loglik.inspection import inspect
from loglik.inspection.figures import attention_maps
from loglik.inspection.page import _short_names
from loglik.recipes import build


@pytest.mark.parametrize("family", ["classifier", "autoregressive"])
def test_attention_maps_are_the_networks_own(family):
    """Rows sum to 1, nothing from later positions where attention is causal, and every layer's is there."""
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3) if family == "classifier" else x)
    options = {"network": "vit", "width": 32} if family == "classifier" else {"width": 16, "depth": 3}
    found = inspect(build(family, data.spec, **options), data)
    layers, heads, length = (4, 1, 4) if family == "classifier" else (3, 4, 64)
    assert len(found.maps) == layers
    for weights in found.maps.values():
        assert weights.shape == (heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones(heads, length))
        assert (weights.triu(1).abs().max() == 0) == (family == "autoregressive")
    drawn = attention_maps(found.maps)
    assert [row.layer for row in drawn] == list(found.maps) and all(len(row.maps) == heads for row in drawn)
    assert next(iter(_short_names(found.maps))) in next(iter(found.maps))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_a_network_on_a_gpu(network):
    x = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8).numpy()
    data = as_data((x, np.arange(40) % 3))
    torch.manual_seed(0)
    density = build("classifier", data.spec, network=network, width=32).eval()
    on_cpu, on_gpu = inspect(density, data), inspect(density.cuda(), data)
    assert on_gpu.flow.verdict == on_cpu.flow.verdict and on_gpu.fields == on_cpu.fields
    assert math.isclose(on_gpu.flow.total, on_cpu.flow.total, rel_tol=1e-2)
    assert [row.flops for row in on_gpu.counts] == [row.flops for row in on_cpu.counts]
    for here, there in zip(on_cpu.permutations, on_gpu.permutations, strict=True):
        assert math.isclose(here.with_positions, there.with_positions, rel_tol=1e-2)
