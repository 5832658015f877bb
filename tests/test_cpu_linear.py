"""Linear maps: their kernels against torch's own in float64, by autograd, by transforms and compiled."""

import pytest
import torch
from torch import nn

from helpers.alone import run_alone
from loglik.cpu.choices import MIN_ONEDNN_FLOPS, Choices, use_choices
from loglik.cpu.linear import linear, linear_outputs_first

ONEDNN = Choices(forward=MIN_ONEDNN_FLOPS, grad_x=MIN_ONEDNN_FLOPS, grad_weight=MIN_ONEDNN_FLOPS)


@pytest.fixture(autouse=True)
def onednn():
    """Use oneDNN on every CPU, also where it is not the faster one."""
    with use_choices(ONEDNN):
        yield


COMPILED = """
import torch
from torch._dynamo.backends.common import aot_autograd
from loglik.networks.linear import Linear

called = []

def keep(graph, inputs):
    called.extend(node.target for node in graph.graph.nodes)
    return graph

layer, x = Linear(192, 160), torch.randn(256, 192, requires_grad=True)
compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
with torch.autocast("cpu", torch.bfloat16):
    assert compiled(x).dtype == torch.bfloat16
found, truth = compiled(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
weights, inputs = torch.randn_like(truth), (x, layer.weight, layer.bias)
gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, truth)]
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
assert called.count(torch.ops.loglik.linear.default) == 3  # forward, and both gradients
"""


def test_large_linear_maps_compile_to_one_graph():
    run_alone("-c", COMPILED)


@pytest.mark.parametrize("outputs", [160, 173])
def test_outputs_first_is_a_linear_map(outputs):
    """Values and gradients are those of float64, by oneDNN or not."""
    h, weight, bias = torch.randn(512, 24), torch.randn(outputs, 24), torch.randn(outputs)
    grad_y, results = torch.randn(outputs, 512), []
    for kind in (torch.float32, torch.float64):
        inputs = [part.to(kind).requires_grad_() for part in (h, weight, bias)]
        y = linear_outputs_first(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, grad_y.to(kind))])
    assert results[0][0].is_contiguous()
    for quick, truth in zip(*results, strict=True):
        torch.testing.assert_close(quick.double(), truth, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(results[1][0], nn.functional.linear(h.double(), weight.double(), bias.double()).T)


def agrees_with_float64(apply, parts, kernel):
    """Compare values, first and second gradients, tangents and vmap; check that `kernel` computed the float32 ones."""
    tangents, results = [torch.randn_like(part) for part in parts], []
    for kind in (torch.float32, torch.float64):
        inputs = [part.to(kind).requires_grad_() for part in parts]
        y = apply(*inputs)
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(part.square().mean() for part in first), inputs)
        along = torch.func.jvp(apply, tuple(inputs), tuple(part.to(kind) for part in tangents))[1]
        rows = torch.vmap(lambda h: apply(h, *inputs[1:]))(inputs[0].expand(2, -1, -1))  # noqa: B023
        results.append([y, *first, *second, along, rows])
    assert type(results[0][0].grad_fn).__name__ == kernel
    for quick, truth in zip(*results, strict=True):
        torch.testing.assert_close(quick.double(), truth, atol=1e-4 * truth.abs().max().item(), rtol=0)


def test_a_staircase_by_halves_is_a_linear_map():
    """Its gradient is zero where the weight must be."""
    reach = [row * 128 // 301 for row in range(301)]
    stairs = torch.arange(128) < torch.tensor(reach).unsqueeze(1)

    def apply(h, raw, bias):
        return linear_outputs_first(h, raw * stairs.to(raw.dtype), bias, reach)

    agrees_with_float64(
        apply, [torch.randn(256, 128), torch.randn(301, 128), torch.randn(301)], "_OutputsFirstBackward"
    )


@pytest.mark.parametrize("order", ["rows", "columns", "part"])
def test_a_large_product_is_that_of_float64(order):
    """Whatever the order in memory."""
    kinds = {"rows": torch.randn(96, 192), "columns": torch.randn(192, 96).t(), "part": torch.randn(96, 256)[:, :192]}
    agrees_with_float64(linear, [torch.randn(300, 192), kinds[order], torch.randn(96)], "_ProductBackward")
