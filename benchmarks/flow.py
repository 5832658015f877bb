"""Spline coupling flows against zuko."""

from __future__ import annotations

from harness import Side, count, evaluation, moved, training_steps

TITLE = "Flow"
SHAPES = {"dims": 64, "couplings": 6, "bins": 8, "hidden": (128, 128), "batch": 128, "interval": 5.0}
NOTES = (
    "`zuko, coupling` has the same architecture as ours: the same masks, and the same network for each coupling. "
    "`zuko, NSF` is zuko's ready-made class with `passes=2`. Its masked network computes a spline for all 64 "
    "dimensions, although only half of them are transformed."
)


def _masks() -> list[list[bool]]:
    return [[(d + layer) % 2 == 0 for d in range(SHAPES["dims"])] for layer in range(SHAPES["couplings"])]


def ours() -> Side:
    import torch
    from torch import nn

    from loglik.density import StandardNormal
    from loglik.flows import Coupling, Flow, Spline
    from loglik.flows.spline import parameters_per_dim
    from loglik.networks import Conditioner

    dims, bins = SHAPES["dims"], SHAPES["bins"]

    def coupling(mask: list[bool]) -> Coupling:
        outputs = sum(mask)
        network = Conditioner(dims - outputs, outputs * parameters_per_dim(bins), SHAPES["hidden"], activation=nn.ReLU)
        return Coupling(mask, network, Spline(bins, SHAPES["interval"]))

    flow = moved(lambda: Flow([coupling(mask) for mask in _masks()], StandardNormal((dims,))))
    x = torch.randn(SHAPES["batch"], dims)
    return Side(
        operations={
            **training_steps(flow.parameters(), lambda: flow.loss(x)),
            "log_prob": evaluation(flow, lambda: flow.log_prob(x)),
            "sample": evaluation(flow, lambda: flow.sample(len(x))),
        },
        parameters=count(flow),
    )


def _zuko(flow) -> Side:
    import torch

    x = torch.randn(SHAPES["batch"], SHAPES["dims"])
    return Side(
        operations={
            **training_steps(flow.parameters(), lambda: -flow().log_prob(x).mean()),
            "log_prob": evaluation(flow, lambda: flow().log_prob(x)),
            "sample": evaluation(flow, lambda: flow().sample((len(x),))),
        },
        parameters=count(flow),
        packages=["zuko"],
    )


def zuko_coupling() -> Side:
    from functools import partial

    import torch
    from zuko.distributions import DiagNormal
    from zuko.flows import Flow, UnconditionalDistribution
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.transforms import MonotonicRQSTransform

    bins, dims = SHAPES["bins"], SHAPES["dims"]
    transforms = [
        GeneralCouplingTransform(
            dims,
            mask=[not moved for moved in mask],  # zuko's mask is true where ours keeps
            univariate=partial(MonotonicRQSTransform, bound=SHAPES["interval"]),
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=SHAPES["hidden"],
        )
        for mask in _masks()
    ]
    base = UnconditionalDistribution(DiagNormal, torch.zeros(dims), torch.ones(dims), buffer=True)
    return _zuko(Flow(transforms, base))


def zuko_nsf() -> Side:
    from zuko.flows import NSF

    return _zuko(
        NSF(
            SHAPES["dims"],
            transforms=SHAPES["couplings"],
            bins=SHAPES["bins"],
            hidden_features=SHAPES["hidden"],
            passes=2,
        )
    )


SIDES = {"ours": ours, "zuko, coupling": zuko_coupling, "zuko, NSF": zuko_nsf}
