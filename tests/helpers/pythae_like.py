"""A VAE with pythae's interface: an encoder, a decoder and a model_config, of a linear model whose p(x) is Gaussian."""

from types import SimpleNamespace

import torch
from torch import nn


class Output(dict):
    """pythae's ModelOutput: values by key and by attribute."""

    __getattr__ = dict.__getitem__


class Encoder(nn.Module):
    """The exact posterior of z given x = W z + b + N(0, I), where the columns of W are orthogonal."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> Output:
        variance = 1 / (1 + self.weight.square().sum(0))
        mean = (x.flatten(1) - self.bias) @ self.weight * variance
        return Output(embedding=mean, log_covariance=variance.log().expand_as(mean))


class Decoder(nn.Module):
    def __init__(self, encoder: Encoder, shape: tuple[int, ...], squash: bool) -> None:
        super().__init__()
        self.encoder, self.shape, self.squash = encoder, shape, squash

    def forward(self, z: torch.Tensor) -> Output:
        x = z @ self.encoder.weight.T + self.encoder.bias
        return Output(reconstruction=(x.sigmoid() if self.squash else x).view(len(z), *self.shape))


class VAE(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, *, shape: tuple[int, ...], loss: str = "mse") -> None:
        super().__init__()
        self.encoder = Encoder(weight, bias)
        self.decoder = Decoder(self.encoder, shape, loss == "bce")
        self.model_config = SimpleNamespace(reconstruction_loss=loss, latent_dim=weight.shape[1], input_dim=shape)


def linear_vae(dims: int, latents: int = 2, **options: str) -> VAE:
    basis = torch.linalg.qr(torch.randn(dims, latents, dtype=torch.float64))[0]
    weight = basis * torch.linspace(0.5, 2, latents, dtype=torch.float64)
    return VAE(weight, torch.randn(dims, dtype=torch.float64), shape=(dims,), **options)
