"""Every learned transform: log-determinants against autograd, inverses, vmap, compile, bf16; peers' weights in it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.densities import perturb
from helpers.needs import peer
from loglik.density import Bound, StandardNormal
from loglik.flows import (
    ActNorm,
    Affine,
    Chain,
    Continuous,
    Coupling,
    Elementwise,
    Flow,
    LogisticMixture,
    LULinear,
    MaskedAutoregressive,
    Spline,
    Split,
    Trim,
    VariationalDequantize,
    autoregressions,
    continuous_flow,
    couplings,
    glow,
    random_rotation,
)
from loglik.flows.spline_bins import UNIT_DERIVATIVE
from loglik.networks import MLP, Conditioner, MaskedMLP, PixelConditioner
from loglik.transforms import Permute, Reshape, Scale, SoftTails, Squeeze
from test_transforms import jacobian_log_det

HERE = Path(__file__).parent
D, E = 4, 3
MAPS = {"affine": Affine(), "spline": Spline(5, 3.0), "mixture": LogisticMixture(3)}
MAPS["chain"] = Chain(MAPS["affine"], MAPS["spline"])


def coupling(map, context=0):
    return Coupling([True, False, True, False], Conditioner(2, 2 * map.parameters, (16,), context=context), map)


def masked(map, context=0, inverse=False):
    return MaskedAutoregressive(MaskedMLP(D, map.parameters, (16, 12), context=context), map, inverse=inverse)


def elementwise(map, context=0):
    return Elementwise(D, map, network=nn.Linear(context, D * map.parameters) if context else None)


def pixels(map):
    network = PixelConditioner(2, 2 * map.parameters, 8)
    return Coupling([True, False, True, False], network, map)


class AnyNetwork(nn.Module):
    """Autoregressive without being a MaskedMLP: cumulative sums, shifted by one."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.3 * torch.randn(D, parameters))

    def forward(self, x):
        before = x.cumsum(1).roll(1, 1) * (torch.arange(D) > 0)
        return torch.tanh(before.unsqueeze(2) * self.mix).flatten(1)


def split():
    return Split((4, 2, 2), [LULinear(2), Reshape((2, 2, 2), (8,))], PixelConditioner(2, 4, 8))


VECTORS = {
    **{f"coupling, {name}": lambda m=m: coupling(m) for name, m in MAPS.items()},
    **{f"masked, {name}": lambda m=m: masked(m) for name, m in MAPS.items()},
    **{f"inverse masked, {name}": lambda m=m: masked(m, inverse=True) for name, m in MAPS.items()},
    **{f"elementwise, {name}": lambda m=m: elementwise(m) for name, m in MAPS.items()},
    "masked, any network": lambda: MaskedAutoregressive(AnyNetwork(2), Affine()),
    "actnorm": lambda: ActNorm(D),
    "lu": lambda: LULinear(D),
    "rotation": lambda: LULinear(random_rotation(D)),
    "permute": lambda: Permute([2, 0, 3, 1]),
    "soft tails": lambda: SoftTails(1.0),
}
IMAGES = {
    **{f"pixels, {name}": lambda m=m: pixels(m) for name, m in MAPS.items()},
    "image actnorm": lambda: ActNorm(4),
    "1×1 convolution": lambda: LULinear(random_rotation(4)),
    "squeeze": lambda: Squeeze(2),
    "split": split,
}
CONTEXT = {
    **{f"coupling, {name}": lambda m=m: coupling(m, E) for name, m in MAPS.items()},
    **{f"masked, {name}": lambda m=m: masked(m, E) for name, m in MAPS.items()},
    "inverse masked": lambda: masked(Affine(), E, inverse=True),
    **{f"elementwise, {name}": lambda m=m: elementwise(m, E) for name, m in MAPS.items()},
}


def moved(build, scale=0.3):
    transform = build()
    perturb(transform, scale)
    return transform.eval()


def events(kind, n=6):
    return torch.randn(n, 4, 2, 2) if kind in IMAGES else torch.randn(n, D)


@pytest.mark.parametrize("kind", [*VECTORS, *IMAGES])
def test_log_det_is_the_jacobians_and_decode_inverts(float64, kind):
    transform, x = moved((VECTORS | IMAGES)[kind]), 1.5 * events(kind)
    z, log_det = transform.encode(x)
    assert log_det.shape == (6,) and transform.bound is Bound.EXACT
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(transform.decode(z), x, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", CONTEXT)
def test_context_reaches_the_map(float64, kind):
    transform, x, context = moved(CONTEXT[kind]), torch.randn(6, D), torch.randn(6, E)
    z, log_det = transform.encode(x, context)
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x, context), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(transform.decode(z, context), x, atol=1e-8, rtol=1e-8)
    assert (transform.encode(x, context + 1)[0] - z).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
@pytest.mark.parametrize("kind", [*VECTORS, *IMAGES])
def test_single_precision_inverts_far_out(kind, size):
    """For inputs in the thousands, weights are scaled so that outputs are of order one."""
    transform = moved((VECTORS | IMAGES)[kind], 0.1 / size)
    with torch.no_grad():
        for name, parameter in transform.named_parameters():
            if "network" in name:
                parameter /= size
    x = size * (2 * torch.rand_like(events(kind, 32)) - 1)
    z, log_det = transform.encode(x)
    assert z.isfinite().all() and log_det.isfinite().all()
    torch.testing.assert_close(transform.decode(z), x, atol=1e-4 * size, rtol=1e-4)


@pytest.mark.parametrize("kind", [*VECTORS, *IMAGES])
def test_vmap_and_bfloat16(kind):
    transform, x = moved((VECTORS | IMAGES)[kind], 0.1), events(kind)
    z, log_det = transform.encode(x)
    one = torch.vmap(lambda row: tuple(part[0] for part in transform.encode(row.unsqueeze(0))))
    for part, truth in zip(one(x), (z, log_det), strict=True):
        torch.testing.assert_close(part, truth, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_log_det = transform.encode(x)
    assert rough.dtype == rough_log_det.dtype == torch.float32
    torch.testing.assert_close(rough, z, atol=0.1, rtol=0.1)


def compile_kinds(*kinds):
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    command = [sys.executable, __file__, *kinds]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_flows_compile_to_one_graph():
    compile_kinds("coupling, spline", "masked, spline", "split")


@pytest.mark.slow
def test_every_transform_compiles_to_one_graph():
    compile_kinds(*VECTORS, *IMAGES)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_worked_out_gradient_is_autograds(float64, inverse):
    from loglik.flows.spline import rational_quadratic_spline, spline_formula

    x, raw = (3 * torch.randn(3, 40)).requires_grad_(), (2 * torch.randn(3, 17, 40)).requires_grad_()
    weights = torch.randn(2, 3, 40)
    gradients = []
    for function in (spline_formula, lambda *a: rational_quadratic_spline(a[0], a[1], bound=a[2], inverse=a[3])):
        outputs = function(x, raw, 3.0, inverse)[:2]
        gradients.append(torch.autograd.grad(outputs, (x, raw), tuple(weights)))
    for plain, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-7, rtol=1e-7)
    twice = lambda r: rational_quadratic_spline(x.detach(), r, bound=3.0, inverse=inverse)[1].sum()  # noqa: E731
    small = raw.detach()[:1, :, :3].requires_grad_()
    x = x[:1, :3]
    assert torch.autograd.gradgradcheck(twice, small)


def test_inverse_maps_have_gradients(float64):
    """An inverse autoregressive flow is trained through its steps."""
    for map in MAPS.values():
        transform, x = moved(lambda m=map: masked(m, inverse=True)), torch.randn(2, D)
        assert torch.autograd.gradcheck(lambda v, t=transform: t.encode(v), x.requires_grad_(), atol=1e-4)
        transform.encode(x)[1].sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in transform.parameters())


@pytest.mark.parametrize("context", [0, E])
def test_masks_hide_what_comes_later(context):
    network = MaskedMLP(5, 3, (7, 20, 6), context=context)
    perturb(network, 0.5)
    x, inputs = torch.randn(1, 5), (torch.randn(1, context),) if context else ()
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v, *inputs).view(5, 3), x).squeeze(2)
    reads = jacobian.abs().sum(1) > 0
    assert torch.equal(reads, torch.ones(5, 5, dtype=torch.bool).tril(-1))


@pytest.mark.parametrize("hidden", [(3,), (7, 20), (64, 64)])
@pytest.mark.parametrize("context", [0, E])
@pytest.mark.parametrize("grad", [False, True])
def test_incremental_outputs_are_those_of_one_pass(float64, hidden, context, grad):
    """Also where a layer has fewer units than there are dimensions."""
    network, x = MaskedMLP(6, 2, hidden, context=context), torch.randn(9, 6)
    inputs = torch.randn(9, context) if context else None
    one_pass = network(x, inputs).view(9, 6, 2)
    with torch.set_grad_enabled(grad):
        outputs = network.incremental(9, inputs)
        for d in range(6):
            torch.testing.assert_close(outputs.next().T, one_pass[:, d])
            outputs.append(x[:, d])


def test_dropout_fades_with_the_rows():
    transform = Coupling([True, False], Conditioner(1, 2, (2000,), dropout=0.4), Affine())
    transform.network.body[0].bias.data.fill_(1.0)
    for rows, share in ((10, 0.4), (1000, 0.4), (4000, 0.1)):
        transform.initialise(torch.zeros(rows, 2))
        dropped = (transform.network.body(torch.ones(1, 1)) == 0).float().mean()
        assert dropped == pytest.approx(share, abs=0.05)
    assert "network.body.2.p" in transform.state_dict()  # so that a resumed training keeps it


def test_actnorm_starts_standardised_and_constant_channels_stay():
    transform, x = ActNorm(3), torch.tensor([4.0, 1e5, 7.0]) + torch.tensor([0.1, 1e3, 0.0]) * torch.randn(500, 3)
    transform.initialise(x)
    z, _ = transform.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-2, rtol=0)


def test_a_spline_starts_at_the_quantiles():
    """Skewed, two-peaked and half-constant columns are nearly normal before the first step."""
    skewed = torch.randn(2000).exp() - 1.6
    peaks = torch.where(torch.rand(2000) < 0.5, -1.5, 1.5) + 0.3 * torch.randn(2000)
    half = torch.where(torch.rand(2000) < 0.5, 0.0, torch.randn(2000))
    x = torch.stack([skewed, peaks, half], 1)
    transform = Elementwise(3, Spline(16))
    before = transform.encode(x)
    transform.initialise(x)
    z, log_det = transform.encode(x)
    score = lambda z, log_det: (log_det - 0.5 * z.square().sum(1)).mean()  # noqa: E731
    assert score(z, log_det) > score(*before) + 0.5
    assert (z.quantile(0.5, dim=0)[:2].abs() < 0.1).all() and log_det.isfinite().all()


def test_variational_dequantization_bounds_no_less(float64):
    """It starts as uniform dequantization; with other weights, importance weights still average to P(x)."""
    torch.manual_seed(3)
    map = Spline(4, 1.0)
    noise = Elementwise(2, map, network=nn.Linear(2, 2 * map.parameters))
    transform = VariationalDequantize([noise], nn.Identity(), levels=3)
    x = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8)
    nn.init.zeros_(noise.network.weight)
    nn.init.zeros_(noise.network.bias)
    v, log_det = transform.encode(x)
    inside = (x == 1).all(1)  # the cells of end levels are unbounded
    assert log_det[inside].abs().max() < 1e-9 and torch.equal(transform.decode(v), x)
    perturb(transform, 0.5)
    flow = Flow([transform, Scale(1.5, -2.25)], StandardNormal((2,)))
    assert flow.levels == 3 and flow.bound is Bound.LOWER and flow.importance_weighted
    weights = torch.stack([flow.log_prob(x).exp() for _ in range(2000)])
    edges = torch.tensor([0.0, *torch.special.ndtr(torch.tensor([-0.75, 0.75])).tolist(), 1.0])
    truth = torch.outer(edges.diff(), edges.diff()).flatten()
    assert ((weights.mean(0) - truth).abs() < 5 * weights.std(0) / 2000**0.5 + 1e-6).all()


def test_continuous_flow_is_its_jacobian_and_inverts(float64):
    transform = Continuous(MLP(3, 3, (16,), context=1, activation=nn.Tanh), steps=16)
    perturb(transform, 0.3)
    x = torch.randn(5, 3)
    z, log_det = transform.encode(x)
    assert (z - x).abs().max() > 0.1 and transform.bound is Bound.EXACT
    torch.testing.assert_close(log_det, jacobian_log_det(transform, x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(transform.decode(z), x, atol=1e-8, rtol=1e-8)
    transform.probes = 1
    assert transform.bound is Bound.ESTIMATE
    estimates = transform.encode(x.repeat(200, 1))[1].view(200, 5)
    assert ((estimates.mean(0) - log_det).abs() < 5 * estimates.std(0) / 200**0.5 + 1e-4).all()


@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("stack", [couplings, autoregressions])
def test_flows_integrate_to_one(float64, stack, map):
    torch.manual_seed(5)
    flow = Flow(stack(2, map, layers=2, hidden=(8,)), StandardNormal((2,)))
    perturb(flow, 0.3)
    line = torch.linspace(-10, 10, 301)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(line, line)).exp().sum() * line.diff()[0] ** 2
    assert abs(total - 1) < 1e-3


@pytest.mark.parametrize("context", [0, 2])
def test_a_continuous_flow_integrates_to_one(float64, context):
    transforms = continuous_flow(2, hidden=(16, 16), context=context)
    flow = Flow(transforms, StandardNormal((2,)), context=nn.Identity() if context else None)
    perturb(flow, 0.3)
    line = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(line, line)
    given_ = torch.tensor([[0.5, -1.0]]).expand(len(grid), -1) if context else None
    with torch.no_grad():
        log_p = flow.log_prob(grid, given_)
        assert (log_p - flow.base.log_prob(grid)).abs().max() > 0.5  # far from where it started
    assert abs(log_p.exp().sum() * line.diff()[0] ** 2 - 1) < 1e-3


@pytest.mark.parametrize("shape", [(1, 12, 8), (1, 9, 7), (2, 5, 4), (3, 2, 3)])
def test_glow_inverts_and_scores(shape, float64):
    flow = Flow(glow(shape, steps=2, width=8, scales=3), StandardNormal((math.prod(shape),)))
    flow.initialise(torch.randn(20, *shape))
    perturb(flow, 0.05)
    x = torch.randn(3, *shape)
    z, log_det = flow.encode(x)
    torch.testing.assert_close(flow.decode(z), x, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(log_det[:1], jacobian_log_det(flow, x[:1]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Spline(1), "at least 2 bins, got 1"),
        (lambda: Permute([0, 0]), "each of 0 ... 1 once"),
        (lambda: Squeeze(0), "at least 1, got 0"),
        (lambda: Squeeze(2).encode(torch.zeros(1, 1, 3, 4)), "multiples of 2, got images of 3×4"),
        (lambda: LULinear(torch.zeros(2, 2)), "invertible"),
        (lambda: Split((1, 2, 2), []), "at least 2 channels, got 1"),
        (lambda: Trim((1, 4, 2), [], nn.Identity(), Affine()), "with an odd side, got 4×2"),
        (lambda: Trim((1, 1, 3), [], nn.Identity(), Affine()), "with an odd side, got 1×3"),
        (lambda: Continuous(nn.Identity(), steps=0), "at least 1, got 0"),
        (lambda: SoftTails(0.0), "above 0, got 0"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# ---- peers' weights mapped in


def copy_masked(network, layers, degrees):
    """Copy another library's masked layers [(weight, bias)], with hidden units sorted by their degrees."""
    order = torch.arange(layers[0][0].shape[1])
    for ours, (weight, bias), own in zip([*network.layers, network.output], layers, [*degrees, None], strict=True):
        rows = torch.arange(len(weight)) if own is None else torch.tensor(own).argsort(stable=True)
        with torch.no_grad():
            ours.weight.copy_(weight[rows][:, order])
            ours.bias.copy_(bias[rows])
        order = rows


def test_zukos_maf(float64):
    theirs = peer("zuko").flows.MAF(3, 2, transforms=3, hidden_features=(10, 7))
    perturb(theirs, 0.2)
    transforms = []
    for number, lazy in enumerate(theirs.transform.transforms):
        network = MaskedMLP(3, 2, (10, 7), context=2, activation=nn.ReLU)
        layers = [layer for layer in lazy.hyper if hasattr(layer, "mask")]
        order = lazy.order.argsort()  # zuko reverses the order in place, ours by a permutation
        weights = [(layer.weight * layer.mask, layer.bias) for layer in layers]
        first, last = weights[0], weights[-1]
        columns = torch.cat([torch.tensor([3, 4]), order])  # the context comes first here
        weights[0] = (first[0][:, columns], first[1])
        rows = (2 * order.unsqueeze(1) + torch.arange(2)).flatten()
        weights[-1] = (last[0][rows], last[1][rows])
        copy_masked(network, weights, [[unit % 3 for unit in range(width)] for width in (10, 7)])
        turn = [Permute(order.tolist())] if number % 2 else []
        map = Affine(bound=6.907755278982137)  # zuko's minimal slope is 1e-3
        transforms += [*turn, MaskedAutoregressive(network, map), *turn]
    ours = Flow(transforms, StandardNormal((3,)), context=nn.Identity())
    x, c = torch.randn(20, 3), torch.randn(20, 2)
    torch.testing.assert_close(ours.log_prob(x, c), theirs(c).log_prob(x), atol=1e-6, rtol=1e-6)


def undo_derivatives(outputs, bins, scale=1.0):
    """From nflows's raw numbers to ours: it scales sizes down, and its derivatives have no offset."""
    raw = outputs.unflatten(1, (-1, 3 * bins - 1))
    return torch.cat([raw[..., : 2 * bins] / scale, raw[..., 2 * bins :] - UNIT_DERIVATIVE], 2).flatten(1)


class Undone(nn.Module):
    def __init__(self, network, bins, scale=1.0):
        super().__init__()
        self.network, self.bins, self.scale = network, bins, scale

    def forward(self, x):
        return undo_derivatives(self.network(x), self.bins, self.scale)


def test_nflows_spline_coupling(float64):
    peer("nflows")
    from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform

    made = []

    class Plain(nn.Sequential):  # nflows passes its networks a context and divides by their width
        hidden_features = 9

        def forward(self, x, context=None):
            return super().forward(x)

    def create(inputs, outputs):
        made.append(Plain(nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, outputs)))
        return made[-1]

    mask = [True, False, True, False]
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor(mask).float(), create, num_bins=5, tails="linear", tail_bound=3.0
    )
    perturb(theirs, 0.5)
    ours = Coupling(mask, Undone(made[0], 5, 3.0), Spline(5, 3.0))
    x = 1.5 * torch.randn(20, 4)
    for own, other in zip(ours.encode(x), theirs(x), strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


def test_nflows_autoregressive_spline(float64):
    peer("nflows")
    from nflows.transforms.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressiveTransform as Theirs

    theirs = Theirs(
        4,
        11,
        num_bins=5,
        tails="linear",
        tail_bound=3.0,
        num_blocks=1,
        use_residual_blocks=False,
        activation=torch.relu,
    )
    perturb(theirs, 0.3)
    net = theirs.autoregressive_net
    layers = [net.initial_layer, net.blocks[0].linear, net.final_layer]
    network = MaskedMLP(4, 14, (11, 11), activation=nn.ReLU)
    copy_masked(network, [(l.weight * l.mask, l.bias) for l in layers], [[u % 3 for u in range(11)]] * 2)  # noqa: E741
    ours = MaskedAutoregressive(Undone(network, 5, 11**0.5 if hasattr(net, "hidden_features") else 1.0), Spline(5, 3.0))
    x = 1.5 * torch.randn(20, 4)
    for own, other in zip(ours.encode(x), theirs(x), strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


if __name__ == "__main__":  # the named transforms under torch.compile, as one graph, against themselves
    for kind in sys.argv[1:]:
        torch.manual_seed(0)
        torch.compiler.reset()  # each is compiled for itself: their methods are the same code
        transform, x = moved((VECTORS | IMAGES)[kind], 0.1), events(kind)
        compiled = torch.compile(transform.encode, backend="eager", fullgraph=True)
        with torch.no_grad():
            for part, truth in zip(compiled(x), transform.encode(x), strict=True):
                torch.testing.assert_close(part, truth, atol=1e-5, rtol=1e-5)
