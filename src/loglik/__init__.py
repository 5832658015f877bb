"""Deep learning by maximum likelihood: every model is a density.

    import loglik
    run = loglik.fit("flow", array, max_time="30s")
    run.density.log_prob(x)          # nats, in the units of the data

Importing loglik is quick: what is named here is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loglik.version import __version__ as __version__

if TYPE_CHECKING:
    from loglik.autoregressive import AnyOrder, Autoregressive
    from loglik.baselines import Independent
    from loglik.classification import Classifier
    from loglik.comparison import compare
    from loglik.data.description import describe
    from loglik.data.spec import DataSpec
    from loglik.density import Bound, Density, StandardNormal
    from loglik.diffusion import Diffusion
    from loglik.divergence import kl_divergence
    from loglik.evaluation.evaluate import evaluate
    from loglik.flows import Flow
    from loglik.mixture import Mixture
    from loglik.runs import Run, load
    from loglik.tasks.anomalies import anomalies
    from loglik.tasks.condition import log_prob_given
    from loglik.tasks.continue_text import continue_text
    from loglik.tasks.encode import encode
    from loglik.tasks.fill import fill
    from loglik.tasks.predict import predict
    from loglik.tasks.sample import sample
    from loglik.tasks.synthetic import synthetic_report
    from loglik.training import TrainingSettings
    from loglik.training.fit import fit
    from loglik.vae import VAE
    from loglik.verification.verify import verify

_HOME = {
    "AnyOrder": "autoregressive",
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
    "anomalies": "tasks",
    "compare": "comparison",
    "continue_text": "tasks",
    "describe": "data.description",
    "encode": "tasks",
    "evaluate": "evaluation",
    "fill": "tasks",
    "fit": "training",
    "kl_divergence": "divergence",
    "load": "runs",
    "log_prob_given": "tasks",
    "Mixture": "mixture",
    "predict": "tasks",
    "sample": "tasks",
    "synthetic_report": "tasks",
    "verify": "verification.verify",
}
_ROOMS = (
    "adapters", "autoregressive", "baselines", "classification", "conditioning", "data", "diffusion", "divergence",
    "evaluation", "export", "flows", "inspection", "mixture", "networks", "recipes", "report", "sklearn", "tasks",
    "training", "transforms", "vae", "verification",
)  # fmt: skip

__all__ = [
    "AnyOrder",
    "Autoregressive",
    "Bound",
    "Classifier",
    "DataSpec",
    "Density",
    "Diffusion",
    "Flow",
    "Independent",
    "Mixture",
    "Run",
    "StandardNormal",
    "TrainingSettings",
    "VAE",
    "anomalies",
    "compare",
    "continue_text",
    "describe",
    "encode",
    "evaluate",
    "fill",
    "fit",
    "kl_divergence",
    "load",
    "log_prob_given",
    "predict",
    "sample",
    "synthetic_report",
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
