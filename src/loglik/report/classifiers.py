"""The report's section on classifiers, whose likelihood is log p(y | x)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loglik.classification.calibration import confusion_matrix, reliability
from loglik.comparison import Row
from loglik.data.dataset import Data
from loglik.density import Density
from loglik.evaluation.scores import evaluating
from loglik.report.chart import Chart
from loglik.report.classifier_figures import confusion, reliability_diagram
from loglik.report.likelihood_figures import curves
from loglik.report.likelihoods import run_history
from loglik.report.numbers import count, duration, percent, plus_minus

__all__ = ["classifier_content"]


def classifier_content(row: Row, data: Data, split: str) -> dict[str, Any]:
    """Return the cells and the pictures of a classifier."""
    r = row.result
    return {
        "model": r.model,
        "accuracy": percent(r.accuracy, r.accuracy_interval),
        "nats": plus_minus(r.nats, r.stderr),
        "error": percent(r.calibration_error, r.calibration_interval),
        "params": count(r.params) if r.params else "–",
        "time": duration(r.train_seconds) if r.train_seconds else "–",
        "steps": f"{r.steps:,}" if r.steps else "–",
        "notes": r.notes,
        "order": {
            "accuracy": r.accuracy,
            "nats": r.nats,
            "error": r.calibration_error,
            "params": r.params or None,
            "time": r.train_seconds or None,
            "steps": r.steps or None,
        },
        "pictures": _pictures(row, data, split),
    }


def _pictures(row: Row, data: Data, split: str) -> list[Chart]:
    """Return the confusion matrix, the reliability diagram and the training curve."""
    if row.run is None:
        return []
    model, part, pictures = row.result.model, data.split(split), []
    labels = part.labels()
    if labels is not None and hasattr(row.run.density, "probabilities"):
        p = _probabilities(row.run.density, part.tensor())
        matrix = confusion_matrix(p, labels).numpy()
        table = reliability(p, labels)
        names = data.spec.classes or tuple(map(str, range(len(matrix))))
        pictures.append(confusion(matrix, names, model))
        caption = "Reliability: accuracy at each confidence, with 95 % intervals. The expected calibration error is "
        caption += f"{percent(table.error, table.error_interval)}."
        pictures.append(reliability_diagram(table, model, caption))
    if len(row.run.history) > 1:
        curve = curves(model, run_history(row.run, 1.0), unit="nats per label", baseline=None, limits=None)
        pictures.append(replace(curve, caption="Training: the training split is grey, the validation split blue."))
    return pictures


def _probabilities(density: Density, x: Tensor, at_once: int = 1024) -> Tensor:
    """Return p(y | x) for every row of x: (N, K)."""
    probabilities: Any = density.probabilities
    with evaluating(density, 0) as device:
        return torch.cat([probabilities(part.to(device)).cpu() for part in x.split(at_once)])
