"""Flows for tables, in the shape of the MINIBOONE table: splines and affine maps, coupling and autoregressive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import Side, count, evaluation, moved, training_steps

TITLE = "Flow for tables"
SHAPES = {"dims": 43, "transforms": 5, "bins": 8, "hidden": (128, 128), "batch": 512, "interval": 5.0}
LARGE = {"batch": 16384}
NOTES = (
    "`coupling` and `autoregressive` are spline flows, `MAF` is autoregressive with affine maps. All networks are "
    "plain, with two hidden layers and ReLU, and couplings have alternating masks, so in each operation all sides "
    "have the same number of parameters. normflows offers these splines with residual networks only: a block of two "
    "layers has one more linear map. The column parameters is the total over all models of a side."
)


def _masks() -> list[list[bool]]:
    return [[(d + layer) % 2 == 0 for d in range(SHAPES["dims"])] for layer in range(SHAPES["transforms"])]


def _side(models: dict[str, tuple[Any, Callable[[Any], Any], Callable[[int], Any]]], packages: list[str]) -> Side:
    """Return the operations of the models, each with its log-probability and its sampler."""
    import torch

    x = torch.randn(SHAPES["batch"], SHAPES["dims"])
    operations: dict[str, Callable[[], Any]] = {}
    for name, (model, log_prob, _) in models.items():
        loss = lambda f=log_prob: -f(x).mean()  # noqa: E731
        operations |= training_steps(model.parameters(), loss, name=f"{name}: training step")
    for name, (model, _, sample) in models.items():
        operations[f"{name}: sample"] = evaluation(model, lambda f=sample: f(len(x)))
    return Side(operations=operations, parameters=sum(count(model) for model, *_ in models.values()), packages=packages)


def ours() -> Side:
    from torch import nn

    from loglik.density import StandardNormal
    from loglik.flows import Affine, Coupling, Flow, MaskedAutoregressive, Spline
    from loglik.networks import Conditioner, MaskedMLP

    dims, hidden = SHAPES["dims"], SHAPES["hidden"]
    spline = Spline(SHAPES["bins"], SHAPES["interval"])

    def masked(map):
        network = MaskedMLP(dims, map.parameters, hidden, activation=nn.ReLU)
        return MaskedAutoregressive(network, map)

    def coupling(mask):
        outputs = sum(mask)
        network = Conditioner(dims - outputs, outputs * spline.parameters, hidden, activation=nn.ReLU)
        return Coupling(mask, network, spline)

    flows = {
        "coupling": moved(lambda: Flow([coupling(mask) for mask in _masks()], StandardNormal((dims,)))),
        "autoregressive": moved(lambda: Flow([masked(spline) for _ in _masks()], StandardNormal((dims,)))),
        "MAF": moved(lambda: Flow([masked(Affine()) for _ in _masks()], StandardNormal((dims,)))),
    }
    return _side({name: (flow, flow.log_prob, flow.sample) for name, flow in flows.items()}, [])


def zuko() -> Side:
    from functools import partial

    import torch
    from zuko.distributions import DiagNormal
    from zuko.flows import MAF, NSF, Flow, UnconditionalDistribution
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.transforms import MonotonicRQSTransform

    dims, bins, hidden = SHAPES["dims"], SHAPES["bins"], SHAPES["hidden"]
    couplings = [
        GeneralCouplingTransform(
            dims,
            mask=[not moved for moved in mask],  # zuko's mask is true where ours keeps
            univariate=partial(MonotonicRQSTransform, bound=SHAPES["interval"]),
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=hidden,
        )
        for mask in _masks()
    ]
    base = UnconditionalDistribution(DiagNormal, torch.zeros(dims), torch.ones(dims), buffer=True)
    options = {"transforms": SHAPES["transforms"], "hidden_features": hidden}
    flows = {
        "coupling": Flow(couplings, base),
        "autoregressive": NSF(dims, bins=bins, **options),
        "MAF": MAF(dims, **options),
    }
    return _side(
        {name: (f, lambda x, f=f: f().log_prob(x), lambda n, f=f: f().sample((n,))) for name, f in flows.items()},
        ["zuko"],
    )


def nflows() -> Side:
    import torch
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms import autoregressive, coupling
    from nflows.transforms.transform import CompositeTransform
    from torch import nn

    dims, width = SHAPES["dims"], SHAPES["hidden"][0]
    spline = {"num_bins": SHAPES["bins"], "tails": "linear", "tail_bound": SHAPES["interval"]}
    plain = {"num_blocks": 1, "use_residual_blocks": False, "activation": torch.relu}

    class Plain(nn.Sequential):  # nflows gives its networks a context too
        def __init__(self, inputs, outputs):
            hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            super().__init__(*hidden, nn.Linear(width, outputs))

        hidden_features = width

        def forward(self, x, context=None):
            return super().forward(x)

    transforms = {
        "coupling": [
            coupling.PiecewiseRationalQuadraticCouplingTransform(torch.tensor(mask).float(), Plain, **spline)
            for mask in _masks()
        ],
        "autoregressive": [
            autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(dims, width, **plain, **spline)
            for _ in _masks()
        ],
        "MAF": [autoregressive.MaskedAffineAutoregressiveTransform(dims, width, **plain) for _ in _masks()],
    }
    flows = {name: Flow(CompositeTransform(parts), StandardNormal([dims])) for name, parts in transforms.items()}
    return _side({name: (flow, flow.log_prob, flow.sample) for name, flow in flows.items()}, ["nflows"])


def normflows() -> Side:
    import normflows as nf

    dims, width, bins = SHAPES["dims"], SHAPES["hidden"][0], SHAPES["bins"]
    options = {"num_bins": bins, "tail_bound": SHAPES["interval"]}
    layers = {
        "coupling": [
            nf.flows.CoupledRationalQuadraticSpline(dims, 1, width, reverse_mask=bool(layer % 2), **options)
            for layer in range(SHAPES["transforms"])
        ],
        "autoregressive": [
            nf.flows.AutoregressiveRationalQuadraticSpline(dims, 1, width, permute_mask=False, **options)
            for _ in range(SHAPES["transforms"])
        ],
    }
    flows = {
        name: nf.NormalizingFlow(nf.distributions.DiagGaussian(dims, trainable=False), parts)
        for name, parts in layers.items()
    }
    return _side({name: (f, f.log_prob, lambda n, f=f: f.sample(n)[0]) for name, f in flows.items()}, ["normflows"])


SIDES = {"ours": ours, "zuko": zuko, "nflows": nflows, "normflows": normflows}
