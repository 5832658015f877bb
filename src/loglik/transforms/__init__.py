"""Invertible maps that are fixed before training; `loglik.flows` has the learned ones."""

from loglik.transforms.affine import Scale, Standardise
from loglik.transforms.bins import Bins
from loglik.transforms.collinear import PartialOut
from loglik.transforms.dequantize import Dequantize
from loglik.transforms.jitter import Jitter
from loglik.transforms.logit import Logit
from loglik.transforms.reshape import Permute, Reshape, Squeeze
from loglik.transforms.tails import SoftTails
from loglik.transforms.transform import Transform

__all__ = [
    "Transform",
    "Bins",
    "Dequantize",
    "Scale",
    "Standardise",
    "Jitter",
    "Logit",
    "PartialOut",
    "Permute",
    "Reshape",
    "SoftTails",
    "Squeeze",
]
