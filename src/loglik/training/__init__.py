"""Training: fit, its settings, and checkpoints."""

from loglik.training.loop import NotFinite, as_data, fit, text_settings
from loglik.training.settings import TrainingSettings, seconds

__all__ = ["NotFinite", "TrainingSettings", "as_data", "fit", "seconds", "text_settings"]
