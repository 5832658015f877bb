"""Numbers: nats, bits/dim, standard errors, and what compressors make of the same data."""

from loglik.evaluation.compressors import compress
from loglik.evaluation.evaluate import bits_per_dim, evaluate_split, labels_in_turn
from loglik.evaluation.result import Result
from loglik.evaluation.rows import RowScores, row_scores
from loglik.evaluation.scores import log_probs, mean_and_stderr
from loglik.evaluation.text import StreamScores, stream_scores

__all__ = [
    "Result",
    "RowScores",
    "StreamScores",
    "bits_per_dim",
    "compress",
    "evaluate_split",
    "labels_in_turn",
    "log_probs",
    "mean_and_stderr",
    "row_scores",
    "stream_scores",
]
