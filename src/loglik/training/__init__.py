"""Training: fit, its settings, and checkpoints."""

from loglik.training.fit import fit
from loglik.training.not_finite import NotFinite
from loglik.training.settings import TrainingSettings, seconds
from loglik.training.signals import Interrupted
from loglik.training.undertrained import undertrained

__all__ = ["Interrupted", "NotFinite", "TrainingSettings", "fit", "seconds", "undertrained"]
