"""Networks: plain modules from tensors to tensors, without probability."""

from loglik.networks.conditioner import Conditioner
from loglik.networks.dit import DiT
from loglik.networks.ladder import Pyramid, TopDown
from loglik.networks.masked import MaskedMLP
from loglik.networks.mlp import ACTIVATIONS, MLP, ResidualMLP
from loglik.networks.pixels import PixelConditioner
from loglik.networks.resnet import ConvNet, ResNet
from loglik.networks.transformer import BlockSettings, CausalTransformer, Decoder, Encoder, EncoderDecoder
from loglik.networks.unet import UNet
from loglik.networks.vit import ViT

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "BlockSettings",
    "CausalTransformer",
    "Conditioner",
    "ConvNet",
    "Decoder",
    "DiT",
    "Encoder",
    "EncoderDecoder",
    "MaskedMLP",
    "PixelConditioner",
    "Pyramid",
    "ResNet",
    "ResidualMLP",
    "TopDown",
    "UNet",
    "ViT",
]
