"""What is done with a trained density: draw samples, continue a text, encode examples, fill missing values, predict."""

from loglik.tasks.continue_text import continue_text
from loglik.tasks.encode import encode, write_latents
from loglik.tasks.fill import fill, fill_table
from loglik.tasks.latents import Latents, diagnose_latents
from loglik.tasks.predict import inputs_for, predict, write_predictions
from loglik.tasks.sample import Samples, draw, sample, samples_of

__all__ = [
    "Latents",
    "Samples",
    "continue_text",
    "diagnose_latents",
    "draw",
    "encode",
    "fill",
    "fill_table",
    "inputs_for",
    "predict",
    "sample",
    "samples_of",
    "write_latents",
    "write_predictions",
]
