"""Numbers: nats, bits/dim and standard errors of densities, and of compressors on the same data."""

from loglik.evaluation.compressors import compress
from loglik.evaluation.evaluate import evaluate
from loglik.evaluation.format import score_in_words, summary
from loglik.evaluation.result import Result, bits_per_dim, write_json
from loglik.evaluation.rows import RowScores, row_scores, write_rows
from loglik.evaluation.scores import labels_in_turn, log_probs, mean_and_stderr
from loglik.evaluation.split import baseline_scores, evaluate_split
from loglik.evaluation.text import StreamScores, stream_scores

__all__ = [
    "Result",
    "RowScores",
    "StreamScores",
    "baseline_scores",
    "bits_per_dim",
    "compress",
    "evaluate",
    "evaluate_split",
    "labels_in_turn",
    "log_probs",
    "mean_and_stderr",
    "row_scores",
    "score_in_words",
    "stream_scores",
    "summary",
    "write_json",
    "write_rows",
]
