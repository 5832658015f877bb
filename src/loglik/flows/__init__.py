"""Normalizing flows: learned invertible transforms, and the density of a base pushed through them."""

from loglik.flows.autoregressive import MaskedAutoregressive
from loglik.flows.bases import GaussianMixture, StandardLogistic
from loglik.flows.continuous import Continuous
from loglik.flows.coupling import Coupling
from loglik.flows.dequantize import VariationalDequantize
from loglik.flows.elementwise import Elementwise
from loglik.flows.flow import Flow
from loglik.flows.linear import ActNorm, LULinear, Whitening, random_rotation
from loglik.flows.maps import Affine, Chain, LogisticMixture, Map, Spline
from loglik.flows.ready import (
    autoregressions,
    continuous_flow,
    couplings,
    glow,
    iaf,
    maf,
    nsf,
    nsf_autoregressive,
    real_nvp,
)
from loglik.flows.spline import rational_quadratic_spline
from loglik.flows.split import Split, Trim

__all__ = [
    "ActNorm",
    "Affine",
    "Chain",
    "Continuous",
    "Coupling",
    "Elementwise",
    "Flow",
    "GaussianMixture",
    "LULinear",
    "LogisticMixture",
    "Map",
    "MaskedAutoregressive",
    "Spline",
    "Split",
    "StandardLogistic",
    "Trim",
    "VariationalDequantize",
    "Whitening",
    "autoregressions",
    "continuous_flow",
    "couplings",
    "glow",
    "iaf",
    "maf",
    "nsf",
    "nsf_autoregressive",
    "random_rotation",
    "rational_quadratic_spline",
    "real_nvp",
]
