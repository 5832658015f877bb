"""Classifiers as densities over labels, and their calibration and confusion."""

from loglik.classification.calibration import calibration_error, confusion_matrix, per_class, reliability
from loglik.classification.classifier import Classifier

__all__ = ["Classifier", "calibration_error", "confusion_matrix", "per_class", "reliability"]
