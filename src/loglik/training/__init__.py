"""Training: fit, its settings, and checkpoints."""

from loglik.training.loop import NotFinite, fit
from loglik.training.settings import TrainingSettings, seconds
from loglik.training.undertrained import undertrained

__all__ = ["NotFinite", "TrainingSettings", "fit", "seconds", "undertrained"]
