"""Diffusion models as densities: noise schedules, denoisers, samplers and the bound."""

from loglik.diffusion.denoiser import Denoiser, LevelDenoiser
from loglik.diffusion.diffusion import Diffusion
from loglik.diffusion.schedule import LinearBeta, NoiseSchedule

__all__ = ["Diffusion", "Denoiser", "LevelDenoiser", "LinearBeta", "NoiseSchedule"]
