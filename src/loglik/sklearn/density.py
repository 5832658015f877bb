"""Estimators of log p(x): densities, and outliers below a threshold."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from sklearn.base import DensityMixin, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from loglik.data.dataset import Split
from loglik.sklearn.base import Estimator, _seed
from loglik.sklearn.frames import like_input
from loglik.tasks.anomalies import SCORES
from loglik.tasks.kernel import KernelDensity, reference_rows
from loglik.tasks.sample import draw

__all__ = ["DensityEstimator", "OutlierDetector"]

AUTO = 0.01  # of normal rows that count as outliers


class DensityEstimator(DensityMixin, Estimator):
    """A density p(x) of the rows of a table: `score_samples` returns log p(x), `sample` draws rows.

    X is an array, whose floating-point columns have a density and integers a probability, or a data frame, which may
    have columns of texts, categories and booleans. The arguments are those of every estimator.

    Attributes:
        run_: the run, with `run_.density`, `run_.history` and `run_.config`.
        n_features_in_, feature_names_in_: the features; their names, if X is a data frame.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> estimator = DensityEstimator(max_steps=3, random_state=0).fit(x)
    >>> estimator.score_samples(x[:5]).shape, estimator.sample(4).shape
    ((5,), (4, 2))
    """

    def fit(self, X: Any, y: Any = None) -> DensityEstimator:
        """Train the density on X. y is ignored."""
        self._fit_rows(X)
        return self

    def score_samples(self, X: Any) -> Float64[np.ndarray, " N"]:
        """Return log p of each row, in nats, in the units of X."""
        return self._log_probs(self._rows(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log p of the rows, in nats. y is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> Any:
        """Draw rows: an array, or a data frame of the library of the training data.

        Args:
            n_samples: the number of rows.
            random_state: of the draws; if None, the same rows in each call.
        """
        check_is_fitted(self, "run_")
        seed = self._seed if random_state is None else _seed(random_state)
        rows = draw(self.run_.density, self.run_.spec, n_samples, seed=seed)
        return like_input(rows, self.run_.spec, self._library)


class OutlierDetector(OutlierMixin, Estimator):
    """Rows of a low score as outliers: `predict` returns -1 for them and 1 for others.

    Args:
        model: the family of the run. The kernel density of the rows needs none, and `independent` needs no training.
        scoring: `kernel`, log p of the kernel density of the training rows, in nats of standardised columns; `nats`,
            log p of the model; `typicality`, minus the distance of log p from its mean over the held-out rows; or
            `auto`, kernel for `model="independent"` and nats for the other families.
        contamination: the fraction of the training rows that are outliers, in (0, 0.5]; or `auto`: a threshold that one
            in 100 normal rows falls below.

    The kernel density scores a row that equals a training row as that row, given the other training rows. The arguments
    that are not named here are those of every estimator.

    Attributes:
        offset_: the threshold of `score_samples`, below which a row is an outlier.
        run_, n_features_in_, feature_names_in_: as of `DensityEstimator`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> OutlierDetector(contamination=0.1, random_state=0).fit_predict(x).sum()
    np.int64(80)
    """

    def __init__(
        self,
        model: Any = "independent",
        *,
        scoring: Any = "auto",
        contamination: Any = "auto",
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
        self.scoring = scoring
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> OutlierDetector:
        """Train the density on X, and choose the threshold. y is ignored."""
        part = self.contamination
        if part != "auto" and not (isinstance(part, (int, float)) and 0 < part <= 0.5):
            raise ValueError(f"contamination must be auto or a number in (0, 0.5], got {part!r}")
        if self.scoring not in SCORES:
            raise ValueError(f"scoring must be one of {', '.join(SCORES)}, got {self.scoring!r}")
        rows, held_out = self._fit_rows(X)
        by_kernel = self.scoring == "kernel" or (self.scoring == "auto" and self.model == "independent")
        self._reference = reference_rows(Split(rows))[1] if by_kernel else None
        self.__dict__.pop("_kernel", None)  # of an earlier fit
        self._usual = float(self._log_probs(rows[held_out]).mean()) if self.scoring == "typicality" else None
        normal = rows[held_out] if self._reference is None else self._reference
        self.offset_ = float(
            np.quantile(self._scores(normal if part == "auto" else rows), AUTO if part == "auto" else part)
        )
        return self

    @cached_property
    def _kernel(self) -> KernelDensity:
        assert self._reference is not None
        return KernelDensity(self._reference, self.run_.spec.categories)

    def _scores(self, rows: Float[Tensor, "N D"]) -> Float64[np.ndarray, " N"]:
        if self._reference is not None:
            return self._kernel.log_prob(rows, own=_places(rows, self._reference)).numpy()
        log_p = self._log_probs(rows)
        return log_p if self._usual is None else -np.abs(log_p - self._usual)

    def score_samples(self, X: Any) -> Float64[np.ndarray, " N"]:
        """Return the score of each row: lower is more abnormal."""
        return self._scores(self._rows(X))

    def decision_function(self, X: Any) -> Float64[np.ndarray, " N"]:
        """Return `score_samples` less `offset_`: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Int64[np.ndarray, " N"]:
        """Return -1 for outliers and 1 for other rows."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _places(rows: Float[Tensor, "N D"], reference: Float[Tensor, "M D"]) -> Int64[Tensor, " N"]:
    """Return the number of a row of reference that equals each row, -1 where none does."""
    places = {row.tobytes(): i for i, row in enumerate(reference.numpy())}
    return torch.tensor([places.get(row.tobytes(), -1) for row in rows.numpy()])
