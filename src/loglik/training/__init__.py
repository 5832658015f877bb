"""Training: fit, its settings, callbacks and loggers, and checkpoints."""

from loglik.training.callbacks import Callback, StopTraining
from loglik.training.fit import fit
from loglik.training.loggers import MLflowLogger, TensorBoardLogger, WandbLogger
from loglik.training.not_finite import NotFinite
from loglik.training.settings import TrainingSettings, seconds
from loglik.training.signals import Interrupted
from loglik.training.undertrained import undertrained

__all__ = [
    "Callback",
    "Interrupted",
    "MLflowLogger",
    "NotFinite",
    "StopTraining",
    "TensorBoardLogger",
    "TrainingSettings",
    "WandbLogger",
    "fit",
    "seconds",
    "undertrained",
]
