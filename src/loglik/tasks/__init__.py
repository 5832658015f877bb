"""What is done with a trained density: samples, texts, latents, filled gaps, predictions, anomalies."""

from loglik.tasks.anomalies import Anomalies, anomalies, find_anomalies
from loglik.tasks.condition import GivenSamples, GivenScore, evaluate_given, log_prob_given, sample_given
from loglik.tasks.condition_text import conditions_of
from loglik.tasks.continue_text import continue_text
from loglik.tasks.encode import encode, write_latents
from loglik.tasks.fill import fill, fill_table
from loglik.tasks.latents import Latents, diagnose_latents
from loglik.tasks.predict import inputs_for, predict, write_predictions
from loglik.tasks.sample import Samples, draw, sample, samples_of
from loglik.tasks.synthetic import SyntheticReport, has_synthetic_rows, synthetic_report

__all__ = [
    "Anomalies",
    "GivenSamples",
    "GivenScore",
    "Latents",
    "Samples",
    "SyntheticReport",
    "anomalies",
    "conditions_of",
    "continue_text",
    "diagnose_latents",
    "draw",
    "encode",
    "evaluate_given",
    "fill",
    "fill_table",
    "find_anomalies",
    "has_synthetic_rows",
    "inputs_for",
    "log_prob_given",
    "predict",
    "sample",
    "sample_given",
    "samples_of",
    "synthetic_report",
    "write_latents",
    "write_predictions",
]
