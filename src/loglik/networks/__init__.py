"""Plain modules from tensors to tensors; no probability in here."""

from loglik.networks.mlp import MLP, ResidualMLP
from loglik.networks.transformer import CausalTransformer

__all__ = ["MLP", "ResidualMLP", "CausalTransformer"]
