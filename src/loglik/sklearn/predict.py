"""Estimators of p(y | x): classes, and real targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from loglik.evaluation.scores import evaluating
from loglik.recipes import recipe
from loglik.sklearn.base import Estimator

__all__ = ["DensityClassifier"]

BLOCK = 2**12  # rows at once


class DensityClassifier(ClassifierMixin, Estimator):
    r"""The classes of rows: $p(y \mid x)$ of a classifier, or by Bayes' rule from densities $p(x \mid y)$.

    With `model="classifier"` a network with softmax is trained on the cross-entropy, and calibrated on the held-out
    rows. Any other family learns $p(x \mid y)$, and $p(y \mid x) \propto p(x \mid y) \, p(y)$ with the classes'
    frequencies. X is an array or a data frame, as of `DensityEstimator`; the arguments are those of every estimator.

    Attributes:
        classes_: the classes, sorted.
        run_, n_features_in_, feature_names_in_: as of `DensityEstimator`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> classifier = DensityClassifier(max_steps=3, random_state=0).fit(x, x[:, 0] > 0)
    >>> classifier.predict_proba(x[:4]).shape, classifier.classes_
    ((4, 2), array([False,  True]))
    """

    def __init__(
        self,
        model: Any = "classifier",
        *,
        size: Any = "small",
        max_steps: Any = None,
        max_time: Any = None,
        options: Any = None,
        device: Any = "auto",
        random_state: Any = None,
        verbose: Any = False,
    ) -> None:
        super().__init__(
            model,
            size=size,
            max_steps=max_steps,
            max_time=max_time,
            options=options,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )

    def fit(self, X: Any, y: Any) -> DensityClassifier:
        """Train on rows X and their classes y: integers, texts or booleans."""
        y = _targets(self, X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has 1 class, {self.classes_[0]}: DensityClassifier needs at least 2")
        options = {}
        if recipe(self.model).family != "classifier":
            if "conditional" not in recipe(self.model).options:
                raise ValueError(f"{self.model} has no densities p(x | class): use classifier, flow, vae or diffusion")
            options = {"conditional": True}
        self._log_prior = np.log(np.bincount(codes) / len(codes))
        self._fit_rows(X, torch.from_numpy(codes), tuple(map(str, self.classes_)), **options)
        return self

    def predict_log_proba(self, X: Any) -> Float64[np.ndarray, "N C"]:
        """Return log p(y | x) of each class, in the order of `classes_`."""
        rows = self._rows(X)
        if self.run_.density.event == "y":
            density = self._density()
            with evaluating(density, self._seed) as device:
                parts = [density.logits(part.to(device).double()).cpu() for part in rows.split(BLOCK)]  # type: ignore[operator]
            scores = torch.cat(parts)
        else:
            given = [torch.full((len(rows),), c) for c in range(len(self.classes_))]
            likelihoods = [self._log_probs(rows, y) for y in given]
            scores = torch.from_numpy(np.stack(likelihoods, 1) + self._log_prior)
        return scores.log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "N C"]:
        """Return p(y | x) of each class, in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row."""
        probable = self.predict_log_proba(X).argmax(1)
        return self.classes_[probable]


def _targets(estimator: Any, x: Any, y: Any) -> np.ndarray:
    """Return y (N,) after scikit-learn's checks."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    check_consistent_length(x, y)
    if y.dtype.kind in "fc":
        check_array(y, ensure_2d=False, input_name="y", estimator=estimator)
    return y
