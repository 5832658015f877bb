"""Optimizers: torch's own, kernels as matrices, and every parameter in exactly one of them."""

import pytest
import torch
from torch import nn

from loglik.classification import Classifier
from loglik.cpu.private import TorchDispatchMode
from loglik.data.spec import DataSpec
from loglik.density import StandardNormal
from loglik.networks import ResNet, TopDown
from loglik.recipes import build
from loglik.training import TrainingSettings
from loglik.training.checkpoint import flatten_optimizers, restore_optimizers
from loglik.training.muon import Muon, orthogonalise, orthogonalise_stack
from loglik.training.optimizers import optimizers_of


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_muon_steps_a_kernel_as_torchs_steps_the_matrix(memory_format):
    start, gradients = torch.randn(6, 4, 3, 3), torch.randn(3, 6, 4, 3, 3)
    kernel = nn.Parameter(start.clone(memory_format=memory_format))
    flat = lambda t: t.to(memory_format=memory_format).permute(0, 2, 3, 1).flatten(1)  # noqa: E731
    if memory_format == torch.contiguous_format:
        flat = lambda t: t.flatten(1)  # noqa: E731
    matrix = nn.Parameter(flat(start).clone())
    ours = Muon([kernel], lr=0.1, weight_decay=0.1)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        kernel.grad, matrix.grad = gradient.clone(), flat(gradient).clone()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        assert kernel.grad is None
    torch.testing.assert_close(flat(kernel), matrix, rtol=0, atol=3e-3)  # theirs is in bfloat16
    assert (kernel - start).abs().max() > 0.01


def polynomials(matrix):
    """What five Newton-Schulz steps do, by the singular values: p(s²) s, five times."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = (3.4445 - 4.7750 * s**2 + 2.0315 * s**4) * s
    return (u * s) @ vh


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_steps_move_singular_values_as_their_polynomials_do(precision):
    """Of matrices long, square and small together, also of low rank; bfloat16 products would make those infinite."""
    shapes = [(32, 200), (200, 32), (32, 32), (5, 9), (9, 5), (40, 33), (1, 7)]
    matrices = [torch.randn(shape) for shape in shapes]
    matrices += [torch.randn(64, 1) @ torch.randn(1, 90) + 1e-3 * torch.randn(64, 90), torch.zeros(8, 3)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        moved = orthogonalise(matrices)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    for matrix, ours in zip(matrices[:-1], moved, strict=False):
        torch.testing.assert_close(ours.double(), polynomials(matrix), rtol=0, atol=1e-3)
    assert not moved[-1].any()
    for ours in moved[:2]:  # far from singular: near the nearest orthogonal matrix
        assert torch.linalg.svdvals(ours).sub(0.95).abs().max() < 0.3
    doubles = orthogonalise([matrix.double() for matrix in matrices])
    for matrix, ours in zip(matrices[:-1], doubles, strict=False):
        torch.testing.assert_close(ours, polynomials(matrix), rtol=0, atol=1e-9)


def test_stacked_matrices_move_as_the_polynomials_say():
    for shape in ((3, 20, 50), (2, 50, 20), (1, 7, 7)):
        stack = torch.randn(shape, dtype=torch.float64)
        moved = orthogonalise_stack(stack)
        for matrix, ours in zip(stack, moved, strict=True):
            torch.testing.assert_close(ours, polynomials(matrix), rtol=0, atol=1e-9)
    assert not orthogonalise_stack(torch.zeros(2, 3, 4)).any()


def muons(shapes, dtype=torch.float64):
    """Two Muons over equal kernels, some in channels-last order, with equal gradients."""
    starts = [torch.randn(shape, dtype=dtype) for shape in shapes]
    starts = [s.to(memory_format=torch.channels_last) if s.dim() == 4 and i % 2 else s for i, s in enumerate(starts)]
    kernels = [[nn.Parameter(start.clone()) for start in starts] for _ in range(2)]
    for one, other in zip(*kernels, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    return [(Muon(ks, lr=0.1, weight_decay=0.2), ks) for ks in kernels]


SHAPES = [(6, 4, 3, 3), (6, 4, 3, 3), (5, 9), (5, 9), (9, 5), (6, 36)]


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["number", "tensor"])
def test_steps_by_shape_are_those_of_each_kernel_alone(rate, monkeypatch):
    (alone, kernels), (together, others) = muons(SHAPES)
    monkeypatch.setattr(together, "_one_by_one", together._by_shape)
    for optimizer in (alone, together):
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(3):
            optimizer.step()
    for one, other in zip(kernels, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        assert torch.allclose(alone.state[one]["momentum_buffer"], together.state[other]["momentum_buffer"])


def test_a_blocked_step_by_shape_changes_nothing(monkeypatch):
    _, (optimizer, kernels) = muons(SHAPES)
    monkeypatch.setattr(optimizer, "_one_by_one", optimizer._by_shape)
    optimizer.step()
    before = [(k.detach().clone(), optimizer.state[k]["momentum_buffer"].clone()) for k in kernels]
    for kernel in kernels:
        kernel.grad.fill_(torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for kernel, (weights, momentum) in zip(kernels, before, strict=True):
        assert torch.equal(kernel, weights) and torch.equal(optimizer.state[kernel]["momentum_buffer"], momentum)


class Count(TorchDispatchMode):
    """Count the operations that would launch a kernel."""

    number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        views = ("view", "detach", "transpose", "permute", "expand", "unbind", "unsqueeze", "alias", "empty_like")
        self.number += not any(view in str(operation) for view in views)
        return operation(*args, **(kwargs or {}))


def test_a_gpu_launches_as_many_operations_for_few_kernels_as_for_many():
    counts = []
    for number in (2, 20):
        kernels = [nn.Parameter(torch.randn(16, 8, 3, 3, device="meta")) for _ in range(number)]
        optimizer = Muon(kernels)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
        for kernel in kernels:
            kernel.grad = torch.zeros_like(kernel)
        optimizer.found_inf = torch.zeros((), device="meta")
        optimizer.step()  # makes the momentum
        with Count() as count:
            optimizer.step()
        counts.append(count.number)
    assert counts[0] == counts[1] < 40


def test_muon_goes_on_from_its_saved_state_bit_for_bit():
    """Also with kernels in channels-last order, whose state is saved in another."""
    start = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    gradients = torch.randn(4, *start.shape)

    def steps(optimizer, kernel, gradients):
        for gradient in gradients:
            kernel.grad = gradient.to(memory_format=torch.channels_last)
            optimizer.step()

    kernel = nn.Parameter(start.clone())
    first = Muon([kernel], lr=0.1)
    steps(first, kernel, gradients[:2])
    again = nn.Parameter(kernel.detach().clone())
    second = Muon([again], lr=0.1)
    restore_optimizers([second], {k: v.contiguous().clone() for k, v in flatten_optimizers([first]).items()})
    for optimizer, weight in ((first, kernel), (second, again)):
        steps(optimizer, weight, gradients[2:])
    assert torch.equal(kernel, again) and not torch.equal(kernel, start)


def classifier() -> Classifier:
    features = ResNet(1, widths=(4, 8), blocks=(1, 1))
    return Classifier(features, nn.Linear(features.outputs, 3), 3)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_parameter_is_stepped_once_and_vectors_do_not_decay(name):
    model = classifier()
    settings = TrainingSettings(optimizer=name, weight_decay=0.3)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizers = optimizers_of(model, settings)
    model.loss(torch.tensor([0, 1, 2, 0]), torch.randn(4, 1, 8, 8)).backward()
    for optimizer in optimizers:
        optimizer.step()
    count = sum(p.numel() for o in optimizers for g in o.param_groups for p in g["params"])
    assert count == sum(p.numel() for p in model.parameters())
    moved = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
    # a gamma of zero passes no gradient to the layers before it in the same block, at the first step
    assert {"head.weight", "head.bias", "features.stem.0.weight"} <= set(moved)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert (group["weight_decay"] == 0.3) == all(p.dim() >= 2 for p in group["params"])


def test_muon_leaves_the_last_layer_to_adamw():
    model = classifier()
    first, muon = optimizers_of(model, TrainingSettings(optimizer="muon"))
    in_adamw = {id(p) for group in first.param_groups for p in group["params"]}
    assert id(model.head.weight) in in_adamw and id(model.features.stem[0].weight) not in in_adamw
    assert isinstance(muon, Muon)


TINY = DataSpec(kind="image", event_shape=(1, 8, 8), levels=3, classes=("a", "b"))
CLOTHES = DataSpec(kind="image", event_shape=(1, 28, 28), levels=256, classes=("a", "b"))
REAL = DataSpec(kind="array", event_shape=(3,), classes=("a", "b"))
TEXT = DataSpec(kind="text", event_shape=(8,), levels=256)


@pytest.mark.parametrize(
    ("name", "spec", "options", "output"),
    [
        ("autoregressive", TEXT, {}, "head"),
        ("autoregressive", TINY, {}, "head"),
        ("autoregressive", REAL, {"conditional": True}, "base.head"),
        ("classifier", TINY, {}, "head.2.output"),
        ("classifier", CLOTHES, {"network": "resnet"}, "head.1"),
        ("classifier", CLOTHES, {"network": "convnet"}, "head.1"),
        ("classifier", CLOTHES, {"network": "vit", "width": 32}, "head.1"),
        ("vae", TINY, {}, "observation.last"),
        ("vae", TINY, {"network": "mlp"}, "decoder.output"),
        ("vae", DataSpec(kind="image", event_shape=(1, 8, 8)), {}, "base.decoder.output"),
        ("vae", REAL, {"prior": "diffusion"}, "base.decoder.output"),
        ("vae:hierarchical", TINY, {}, "observation.last"),
        ("diffusion", CLOTHES, {"kind": "unet"}, "denoiser.network.output"),
        ("diffusion", CLOTHES, {"kind": "dit"}, "denoiser.network.output"),
        ("diffusion", TINY, {"kind": "mlp", "conditional": True}, "denoiser.network.output"),
        ("diffusion", REAL, {}, "base.denoiser.network.output"),
        ("flow:nsf", REAL, {"depth": 2, "conditional": True}, "transforms.7.network.output"),
        ("flow:glow", TINY, {"conditional": True}, "transforms.22.network.output"),
        ("flow:continuous", REAL, {}, "transforms.6.network.output"),
        ("flow:maf", REAL, {"conditional": True}, "transforms.3.network"),
    ],
)
def test_muon_steps_all_linear_maps_and_convolutions_but_the_declared_output(name, spec, options, output):
    """In each of these the output is also the last layer in the order of the modules."""
    model = build(name, spec, **{"width": 8, **options})
    optimizers = optimizers_of(model, TrainingSettings(optimizer="muon"))
    in_muon = {id(p) for o in optimizers if isinstance(o, Muon) for p in o.param_groups[0]["params"]}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}
    assert [n for n, layer in layers.items() if id(layer.weight) not in in_muon] == [output] == list(layers)[-1:]
    assert in_muon <= {id(layer.weight) for layer in layers.values()}


def test_a_density_that_declares_no_output_has_none():
    class Own(StandardNormal):
        def __init__(self, network):
            super().__init__((2,))
            self.network = network

    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    assert Own(nn.Sequential(first, nn.ReLU(), last, nn.Dropout(0.1))).output_layers() == (last,)
    assert Own(last).output_layers() == (last,)
    assert Own(nn.ModuleList([first, last])).output_layers() == Own(nn.Sequential()).output_layers() == ()
    assert StandardNormal((2,)).output_layers() == ()
    top_down = TopDown(8, 8, 1, widths=(4, 4), latents=(2, 2), groups=(1, 1))
    assert Own(top_down).output_layers() == (top_down.last,)


@pytest.mark.parametrize("prior", ["flow", "hierarchical", "diffusion"])
def test_muon_leaves_a_decoders_output_to_adamw_under_any_prior(prior):
    model = build("vae", DataSpec(kind="image", event_shape=(1, 8, 8), levels=3), network="mlp", prior=prior, width=8)
    _, muon = optimizers_of(model, TrainingSettings(optimizer="muon"))
    stepped = muon.param_groups[0]["params"]
    assert any(model.encoder.output.weight is kernel for kernel in stepped)
    assert not any(model.decoder.output.weight is kernel for kernel in stepped)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'lion': use adamw, sgd, muon"):
        TrainingSettings(optimizer="lion")
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        TrainingSettings(momentum=1.0)
