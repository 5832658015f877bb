"""Diffusion on vectors against diffusers' DDPM scheduler."""

from __future__ import annotations

from harness import Side, count, evaluation, moved, training_steps

TITLE = "Diffusion"
SHAPES = {"dims": 64, "width": 256, "depth": 3, "features": 32, "batch": 128, "samples": 64, "steps": 200}
NOTES = (
    "Diffusers has no network for vectors, so its side combines its DDPMScheduler with a residual MLP of the same "
    "shape as ours (LayerNorm, scale and shift by the time in each block). It trains on the mean squared error of the "
    "noise; ours trains on the likelihood bound. Both sample 64 vectors in 200 steps of the ancestral chain. Only our "
    "side evaluates the bound, by `log_prob(samples=8)`."
)


def ours() -> Side:
    import torch

    from loglik.diffusion import Denoiser, Diffusion, Sampler
    from loglik.networks.mlp import ResidualMLP

    dims, features = SHAPES["dims"], SHAPES["features"]

    def build() -> Diffusion:
        network = ResidualMLP(dims, dims, width=SHAPES["width"], depth=SHAPES["depth"], context=features)
        denoiser = Denoiser(network, prediction="noise", features=features)
        return Diffusion(denoiser, (dims,), sampler=Sampler(steps=SHAPES["steps"]))

    diffusion = moved(build)
    x = torch.randn(SHAPES["batch"], dims)
    return Side(
        operations={
            **training_steps(diffusion.parameters(), lambda: diffusion.loss(x)),
            "sample": evaluation(diffusion, lambda: diffusion.sample(SHAPES["samples"])),
            "log_prob": evaluation(diffusion, lambda: diffusion.log_prob(x, samples=8)),
        },
        parameters=count(diffusion),
    )


def diffusers() -> Side:
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.models.embeddings import get_timestep_embedding
    from torch import nn

    dims, width, features = SHAPES["dims"], SHAPES["width"], SHAPES["features"]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            depth = range(SHAPES["depth"])
            self.enter, self.leave = nn.Linear(dims, width), nn.Linear(width, dims)
            self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in depth])
            self.times = nn.ModuleList([nn.Linear(features, 2 * width) for _ in depth])
            self.first = nn.ModuleList([nn.Linear(width, width) for _ in depth])
            self.second = nn.ModuleList([nn.Linear(width, width) for _ in depth])
            self.last_norm = nn.LayerNorm(width)

        def forward(self, x, t):
            code = get_timestep_embedding(t, features)
            h = self.enter(x)
            for norm, time, first, second in zip(self.norms, self.times, self.first, self.second, strict=True):
                scale, shift = time(code).chunk(2, dim=1)
                h = h + second(F.silu(first(norm(h)) * (1 + scale) + shift))
            return self.leave(self.last_norm(h))

    network = Network()
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    x = torch.randn(SHAPES["batch"], dims)

    def loss():
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),), device=x.device)
        return F.mse_loss(network(scheduler.add_noise(x, noise, t), t), noise)

    def sample():
        scheduler.set_timesteps(SHAPES["steps"])
        z = torch.randn(SHAPES["samples"], dims, device=x.device)
        for t in scheduler.timesteps:
            z = scheduler.step(network(z, t.to(z.device).expand(len(z))), t, z).prev_sample
        return z

    return Side(
        operations={
            **training_steps(network.parameters(), loss),
            "sample": evaluation(network, sample),
        },
        parameters=count(network),
        packages=["diffusers"],
    )


SIDES = {"ours": ours, "diffusers": diffusers}
