"""Densities as scikit-learn estimators: for pipelines, cross-validation and searches of settings."""

from loglik.sklearn.density import DensityEstimator, OutlierDetector
from loglik.sklearn.predict import DensityClassifier, DensityRegressor
from loglik.sklearn.transform import DensityImputer, LatentEncoder

__all__ = [
    "DensityClassifier",
    "DensityEstimator",
    "DensityImputer",
    "DensityRegressor",
    "LatentEncoder",
    "OutlierDetector",
]
