"""Estimators of p(y | x): classes, and real targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d
from torch import Tensor

from loglik.data.tables import from_frame
from loglik.evaluation.predictions import Prediction, predict_rows
from loglik.evaluation.scores import evaluating
from loglik.recipes import recipe
from loglik.sklearn.base import Estimator, _seed
from loglik.sklearn.frames import columns_of, encoded

__all__ = ["DensityClassifier", "DensityRegressor"]

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
        check_is_fitted(self, "run_")
        if self.run_.density.event == "y":
            rows = self._known_rows(X)
            density = self._density()
            with evaluating(density, self._seed) as device:
                parts = [density.logits(part.to(device).double()).cpu() for part in rows.split(BLOCK)]  # type: ignore[operator]
            scores = torch.cat(parts)
        else:
            rows = self._rows(X)
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


class DensityRegressor(RegressorMixin, MultiOutputMixin, Estimator):
    r"""Real targets of rows: $p(y \mid x)$, its mean, its quantiles and draws from it.

    With `model="mixture"` networks give the components of a mixture, whose mean and quantiles are exact; those of
    `flow`, `vae`, `autoregressive` and `diffusion` come from 200 draws for each row. y is an array (N,), or (N, T) for
    several targets with a joint density. A target whose values are all integers has probabilities. Values of X may be
    missing. The arguments are those of every estimator.

    Attributes:
        run_, n_features_in_, feature_names_in_: as of `DensityEstimator`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> regressor = DensityRegressor(max_steps=3, random_state=0).fit(x, x[:, 0])
    >>> regressor.predict(x[:4]).shape, regressor.predict_quantiles(x[:4], [0.05, 0.95]).shape
    ((4,), (4, 2))
    """

    def __init__(
        self,
        model: Any = "mixture",
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

    def fit(self, X: Any, y: Any) -> DensityRegressor:
        """Train on rows X and their targets y, (N,) or (N, T)."""
        targets = _real_targets(self, X, y)
        self._single = targets.ndim == 1
        inputs, table = encoded(columns_of(self, X, reset=True), None)
        y_table = pl.DataFrame(
            {f"y{t}": _integers(column) for t, column in enumerate(targets.reshape(len(targets), -1).T)}
        )
        event = from_frame(y_table, name="y", source="y")
        spec = replace(event.spec, inputs=table.columns)
        self._train(event.split("all").tensor(), spec, inputs)
        return self

    def _inputs(self, x: Any) -> Float[Tensor, "N I"]:
        check_is_fitted(self, "run_")
        frame = columns_of(self, x, reset=False)
        inputs = self.run_.spec.inputs
        frame.columns = [column.name for column in inputs]
        like = replace(self.run_.spec, columns=inputs, inputs=(), event_shape=(len(inputs),))
        return encoded(frame, like)[0]

    def _predict(self, x: Any, levels: Sequence[float] = (0.5,)) -> Prediction:
        return predict_rows(self._density(), self.run_.spec, self._inputs(x), levels=levels, seed=self._seed)

    def _shaped(self, values: Tensor) -> np.ndarray:
        array = values.double().numpy()
        return array[..., 0] if self._single else array

    def predict(self, X: Any) -> Float64[np.ndarray, "N ..."]:
        """Return the mean of p(y | x) of each row."""
        found = self._predict(X)
        return self._shaped(found.mean)

    def predict_std(self, X: Any) -> Float64[np.ndarray, "N ..."]:
        """Return the standard deviation of p(y | x) of each row."""
        found = self._predict(X)
        return self._shaped(found.std)

    def predict_quantiles(
        self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> Float64[np.ndarray, "N Q ..."]:
        """Return quantiles of p(y | x) of each row: (N, Q), or (N, Q, T) for several targets.

        Raises ValueError for a level outside (0, 1).
        """
        if wrong := [level for level in quantiles if not 0 < level < 1]:
            raise ValueError(f"quantiles are levels between 0 and 1, got {wrong[0]:g}")
        found = self._predict(X, list(quantiles))
        return self._shaped(found.quantiles)

    def log_prob(self, X: Any, y: Any) -> Float64[np.ndarray, " N"]:
        """Return log p(y | x) of each row, in nats, in the units of y."""
        inputs = self._inputs(X)
        y = check_array(y, ensure_2d=False, dtype="numeric", input_name="y", estimator=self).reshape(len(inputs), -1)
        return self._log_probs(torch.from_numpy(y.astype(np.float32)), inputs)

    def sample(self, X: Any, n_samples: int = 1, *, random_state: Any = None) -> Float64[np.ndarray, "N S ..."]:
        """Draw n_samples targets for each row: (N, S), or (N, S, T) for several targets.

        Args:
            X: the rows.
            n_samples: for each row.
            random_state: of the draws; if None, the same in each call.
        """
        inputs = self._inputs(X)
        density = self._density()
        with evaluating(density, self._seed if random_state is None else _seed(random_state)) as device:
            parts = [
                density.sample(n_samples * len(part), part.to(device).repeat_interleave(n_samples, 0)).cpu()
                for part in inputs.split(max(1, BLOCK // n_samples))
            ]
        return self._shaped(torch.cat(parts).view(len(inputs), n_samples, -1))


def _targets(estimator: Any, x: Any, y: Any) -> np.ndarray:
    """Return y (N,) after scikit-learn's checks."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    check_consistent_length(x, y)
    if y.dtype.kind in "fc":
        check_array(y, ensure_2d=False, input_name="y", estimator=estimator)
    return y


def _real_targets(estimator: Any, x: Any, y: Any) -> np.ndarray:
    """Return real targets (N,) or (N, T) after scikit-learn's checks."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    y = check_array(y, ensure_2d=False, dtype="numeric", input_name="y", estimator=estimator)
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    check_consistent_length(x, y)
    return y


def _integers(values: np.ndarray) -> np.ndarray:
    """Return a target of integers as such, whatever their type."""
    whole = values.dtype.kind != "f" or bool((values == np.round(values)).all() and (np.abs(values) < 2**53).all())
    return values.astype(np.int64 if whole else np.float64)
