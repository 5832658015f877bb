"""Parameters, FLOPs and memory of layers, against counts by hand."""

import torch
from torch import nn

from helpers.networks import resnet
from loglik.inspection import layer_counts
from loglik.networks import CausalTransformer


def test_counts_add_up():
    network = resnet(3)
    x = torch.zeros(2, 3, 32, 32)
    rows = layer_counts(network, lambda: network(x), batch=2)
    by_name = {row.layer: row for row in rows}
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in network.parameters())
    assert by_name["0"].parameters == 7 * 7 * 3 * 4 + 4
    assert by_name["0"].dense_parameters == 3 * 32 * 32 * 4 * 16 * 16 + 4 * 16 * 16
    assert by_name["0"].flops == 2 * 7 * 7 * 3 * 4 * 16 * 16
    assert by_name["0"].activation_bytes == 4 * 16 * 16 * 4
    assert by_name["7"].flops == 2 * 6 * 3


def test_counts_of_attention():
    network = CausalTransformer(16, 2, 2)
    x = torch.zeros(1, 10, 16)
    rows = {row.layer: row for row in layer_counts(network, lambda: network(x))}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in network.parameters())
    assert rows["blocks.0.attention"].flops == 2 * 2 * 10 * 10 * 16
    multi = nn.MultiheadAttention(8, 2, batch_first=True)
    h = torch.zeros(1, 5, 8)
    counted = layer_counts(multi, lambda: multi(h, h, h))
    assert sum(row.parameters for row in counted) == sum(p.numel() for p in multi.parameters())
    assert sum(row.activation_bytes for row in counted) == 4 * 5 * 8


def test_flops_of_recurrence():
    """A product of the gates' weights with the input and the state per step, whatever kernel runs them."""
    x = torch.randn(2, 10, 8)
    for kind, gates in ((nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)):
        network = kind(8, 16, batch_first=True)
        (row,) = layer_counts(network, lambda: network(x), batch=2)  # noqa: B023
        assert row.flops == 2 * 10 * gates * (8 * 16 + 16 * 16)
        assert row.parameters == gates * (8 * 16 + 16 * 16 + 2 * 16)
        assert row.activation_bytes == 4 * 10 * 16


def test_memory_of_layers_that_return_their_input():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2), nn.ReLU()
    )
    x = torch.randn(2, 1, 4, 4)
    rows = layer_counts(network, lambda: network(x), batch=2)
    assert [row.activation_bytes for row in rows] == [256, 0, 0, 0, 8, 8]
