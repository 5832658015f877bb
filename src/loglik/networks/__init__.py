"""Plain modules from tensors to tensors; no probability in here."""

from loglik.networks.mlp import MLP, ResidualMLP
from loglik.networks.resnet import ConvNet, ResNet
from loglik.networks.transformer import BlockSettings, CausalTransformer, Decoder, Encoder, EncoderDecoder
from loglik.networks.vit import ViT

__all__ = [
    "MLP",
    "BlockSettings",
    "CausalTransformer",
    "ConvNet",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "ResNet",
    "ResidualMLP",
    "ViT",
]
