"""Densities as scikit-learn estimators: for pipelines, cross-validation and searches of settings."""

from loglik.sklearn.density import DensityEstimator, OutlierDetector
from loglik.sklearn.predict import DensityClassifier
from loglik.sklearn.transform import LatentEncoder

__all__ = ["DensityClassifier", "DensityEstimator", "LatentEncoder", "OutlierDetector"]
