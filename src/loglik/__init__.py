"""Deep learning by maximum likelihood: every model is a density.

    import loglik
    run = loglik.fit("flow", array, max_time="30s")
    run.density.log_prob(x)          # nats, in the units of the data

Importing loglik is quick: what is named here is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loglik.autoregressive import Autoregressive
    from loglik.baselines import Independent
    from loglik.classification import Classifier
    from loglik.comparison import compare, evaluate
    from loglik.data.spec import DataSpec
    from loglik.density import Bound, Density, StandardNormal
    from loglik.diffusion import Diffusion
    from loglik.divergence import kl_divergence
    from loglik.flows import Flow
    from loglik.runs import Run, load
    from loglik.training import TrainingSettings
    from loglik.training.fit import fit
    from loglik.vae import VAE
    from loglik.verification.verify import verify

__version__ = "0.1.0"

_HOME = {
    "Autoregressive": "autoregressive",
    "Bound": "density",
    "Classifier": "classification",
    "DataSpec": "data.spec",
    "Density": "density",
    "Diffusion": "diffusion",
    "Flow": "flows",
    "Independent": "baselines",
    "Run": "runs",
    "StandardNormal": "density",
    "TrainingSettings": "training",
    "VAE": "vae",
    "compare": "comparison",
    "evaluate": "comparison",
    "fit": "training",
    "kl_divergence": "divergence",
    "load": "runs",
    "verify": "verification.verify",
}
_ROOMS = (
    "autoregressive", "baselines", "classification", "data", "diffusion", "divergence", "evaluation", "flows",
    "inspection", "networks", "recipes", "report", "training", "transforms", "vae",
    "verification",
)  # fmt: skip

__all__ = [
    "Autoregressive",
    "Bound",
    "Classifier",
    "DataSpec",
    "Density",
    "Diffusion",
    "Flow",
    "Independent",
    "Run",
    "StandardNormal",
    "TrainingSettings",
    "VAE",
    "compare",
    "evaluate",
    "fit",
    "kl_divergence",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"loglik.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"loglik.{name}")
    raise AttributeError(f"module 'loglik' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
