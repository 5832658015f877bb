"""What is done with a trained density: sample, continue a text, encode, fill missing values, find anomalies."""

from loglik.tasks.anomalies import Anomalies, anomalies, find_anomalies
from loglik.tasks.continue_text import continue_text
from loglik.tasks.encode import encode, write_latents
from loglik.tasks.fill import fill, fill_table
from loglik.tasks.latents import Latents, diagnose_latents
from loglik.tasks.sample import Samples, draw, sample, samples_of

__all__ = [
    "Anomalies",
    "Latents",
    "Samples",
    "anomalies",
    "continue_text",
    "diagnose_latents",
    "draw",
    "encode",
    "fill",
    "fill_table",
    "find_anomalies",
    "sample",
    "samples_of",
    "write_latents",
]
