"""Variational autoencoders against pythae."""

from __future__ import annotations

from harness import Side, count, evaluation, training_step

TITLE = "VAE"
SHAPES = {"dims": 784, "latent": 16, "hidden": 512, "batch": 128, "points": 32, "draws": 100}
NOTES = (
    "Both are Gaussian MLPs of one hidden layer each way. Ours learns the deviation of each dimension too, so its "
    "decoder gives 2 × 784 numbers where pythae's gives 784, with a deviation fixed at 1: more work, and a part of the "
    "difference in time. The likelihood takes 32 points with 100 draws each, the same importance-weighted bound: "
    "`log_prob(samples=100)` and `get_nll`."
)


def ours() -> Side:
    import torch
    from torch import nn

    from loglik.networks.mlp import MLP
    from loglik.vae import VAE, Gaussian

    dims, latent, hidden = SHAPES["dims"], SHAPES["latent"], (SHAPES["hidden"],)
    observation = Gaussian((dims,))
    vae = VAE(
        MLP(dims, 2 * latent, hidden, activation=nn.ReLU),
        MLP(latent, observation.outputs, hidden, activation=nn.ReLU),
        observation,
        latent=latent,
    )
    x = torch.rand(SHAPES["batch"], dims)
    few = x[: SHAPES["points"]]
    return Side(
        operations={
            "training step": training_step(vae.parameters(), lambda: vae.loss(x)),
            "likelihood": evaluation(vae, lambda: vae.log_prob(few, samples=SHAPES["draws"])),
        },
        parameters=count(vae),
    )


def pythae() -> Side:
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import nn

    dims, latent, hidden = SHAPES["dims"], SHAPES["latent"], SHAPES["hidden"]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))

        def forward(self, x):
            mean, log_variance = self.body(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dims))

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    vae = VAE(VAEConfig(input_dim=(dims,), latent_dim=latent, reconstruction_loss="mse"), Encoder(), Decoder())
    x = torch.rand(SHAPES["batch"], dims)
    few = x[: SHAPES["points"]]
    draws = SHAPES["draws"]
    return Side(
        operations={
            "training step": training_step(vae.parameters(), lambda: vae({"data": x}).loss),
            "likelihood": evaluation(vae, lambda: vae.get_nll(few, n_samples=draws, batch_size=draws)),
        },
        parameters=count(vae),
        packages=["pythae"],
    )


SIDES = {"ours": ours, "pythae": pythae}
