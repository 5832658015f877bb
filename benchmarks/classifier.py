"""An MLP classifier on digits against scikit-learn's."""

from __future__ import annotations

from device import selected
from harness import Side, count, evaluation, training_step

TITLE = "Classifier"
SHAPES = {"hidden": (256, 256), "batch": 64, "rows": 10_000}
NOTES = (
    "The 1,797 digits of scikit-learn in float32. An epoch is one pass over all of them, shuffled, in batches of "
    "64: 29 steps of AdamW, or one `partial_fit` with Adam. Probabilities are for 10,000 rows in one call."
)


def _digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    repeats = -(-SHAPES["rows"] // len(x))
    many = x.repeat(repeats, axis=0)[: SHAPES["rows"]]
    return x, y, many


def ours() -> Side:
    import torch
    from torch import nn

    from loglik.classification import Classifier
    from loglik.networks.mlp import MLP

    x, y, many = (torch.from_numpy(part).to(selected()) for part in _digits())
    first, second = SHAPES["hidden"]
    features = MLP(x.shape[1], second, (first,), activation=nn.ReLU)
    classifier = Classifier(features, nn.Sequential(nn.ReLU(), nn.Linear(second, 10)), 10)
    rows = [torch.arange(0)]
    step = training_step(classifier.parameters(), lambda: classifier.loss(y[rows[0]], x[rows[0]]))

    def epoch() -> None:
        for batch in torch.randperm(len(x), device="cpu").split(SHAPES["batch"]):
            rows[0] = batch
            step()

    return Side(
        operations={
            "training epoch": epoch,
            "probabilities": evaluation(classifier, lambda: classifier.probabilities(many)),
        },
        parameters=count(classifier),
    )


def scikit_learn() -> Side:
    from sklearn.neural_network import MLPClassifier

    x, y, many = _digits()
    classifier = MLPClassifier(
        SHAPES["hidden"], batch_size=SHAPES["batch"], solver="adam", learning_rate_init=1e-4, random_state=0
    )
    classifier.partial_fit(x, y, classes=list(range(10)))
    return Side(
        operations={
            "training epoch": lambda: classifier.partial_fit(x, y),
            "probabilities": lambda: classifier.predict_proba(many),
        },
        parameters=sum(part.size for part in [*classifier.coefs_, *classifier.intercepts_]),
        packages=["scikit-learn"],
    )


SIDES = {"ours": ours, "scikit-learn": scikit_learn}
