"""Diffusion models as densities: noise schedules, denoisers, score matching, likelihoods and samplers."""

from loglik.diffusion.chain import Chain, Discrete, ddpm_betas
from loglik.diffusion.columns import ColumnDenoiser
from loglik.diffusion.denoiser import Denoiser, LevelDenoiser
from loglik.diffusion.diffusion import Diffusion, with_likelihood, with_sampler
from loglik.diffusion.guidance import with_noise_level
from loglik.diffusion.learned import Learned
from loglik.diffusion.likelihood import ODE, VLB
from loglik.diffusion.pixels import PixelDenoiser
from loglik.diffusion.rectified import RectifiedFlow, curvature
from loglik.diffusion.sampler import Sampler
from loglik.diffusion.schedule import Cosine, FlowMatching, LinearBeta, LinearLogSNR, NoiseSchedule
from loglik.diffusion.score_matching import ScoreMatching

__all__ = [
    "ODE",
    "VLB",
    "Chain",
    "ColumnDenoiser",
    "Cosine",
    "Denoiser",
    "Diffusion",
    "Discrete",
    "FlowMatching",
    "Learned",
    "LevelDenoiser",
    "LinearBeta",
    "LinearLogSNR",
    "NoiseSchedule",
    "PixelDenoiser",
    "RectifiedFlow",
    "Sampler",
    "ScoreMatching",
    "curvature",
    "ddpm_betas",
    "with_likelihood",
    "with_noise_level",
    "with_sampler",
]
