"""What the estimators share: their arguments, a fit without a trace, scores that do not depend on the batch."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.evaluation.incomplete import scorable, unseen
from loglik.evaluation.rows import row_scores
from loglik.runs import Run
from loglik.sklearn.frames import columns_of, encoded, library_of
from loglik.sklearn.saved import read, write
from loglik.training.fit import fit

__all__ = ["Estimator"]

HELD_OUT = 0.1  # of the rows, for early stopping
MIN_ROWS = 10  # with fewer, the training rows are those of the validation too


class Estimator(BaseEstimator):
    """The base of the estimators: it trains a density on a table, and keeps it as `run_`.

    Nothing is written to disk, and nothing is printed unless `verbose`. A tenth of the rows is held out for early
    stopping. Scores are computed in float64, so that they do not depend on the other rows of a call.

    Args:
        model: the family's name, as of `loglik.fit`.
        size: `small`, `medium` or `large`.
        max_steps: training steps at most; 2,000 if there is no limit.
        max_time: training time at most: seconds, or `30s`, `5m`.
        options: other keyword arguments of `loglik.fit`: of the training and of the model.
        device: `cpu`, `cuda`, `mps`, or `auto` for a CUDA GPU if there is one.
        random_state: of the held-out rows, the weights and all noise: an integer, a `RandomState`, or None.
        verbose: show a progress bar and messages.
    """

    run_: Run
    n_features_in_: int

    def __init__(
        self,
        model: Any = "flow",
        *,
        size: Any = "small",
        max_steps: Any = None,
        max_time: Any = None,
        options: Any = None,
        device: Any = "auto",
        random_state: Any = None,
        verbose: Any = False,
    ) -> None:
        # Any: scikit-learn checks arguments in fit, not before
        self.model = model
        self.size = size
        self.max_steps = max_steps
        self.max_time = max_time
        self.options = options
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def spec_(self) -> Any:
        """The columns that the density models, as `loglik.DataSpec`."""
        check_is_fitted(self, "run_")
        return self.run_.spec

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _fit_rows(
        self,
        x: Any,
        y: Int64[Tensor, " N"] | None = None,
        classes: tuple[str, ...] = (),
        **options: Any,
    ) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " M"]]:
        """Train a density on X, and labels where the density has any.

        Returns the rows and the numbers of those that were held out.
        """
        self._library = library_of(x)
        rows, spec = encoded(columns_of(self, x, reset=True), None)
        return self._train(rows, replace(spec, classes=classes), y, **options)

    def _train(
        self, rows: Float[Tensor, "N D"], spec: DataSpec, y: Tensor | None, **options: Any
    ) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " M"]]:
        """Train a density on rows, given labels or inputs y where it is conditional."""
        self._seed = _seed(self.random_state)
        labels = y if spec.classes else None
        train, held_out = _split_rows(len(rows), labels, self._seed)
        train_split, validation, test = (
            Split(rows[part], None if y is None else y[part], part) for part in (train, held_out, train[:0])
        )
        data = Data(type(self).__name__, spec, train_split, validation, test)
        limits = {"max_steps": self.max_steps, "max_time": self.max_time}
        self.run_ = fit(
            self.model,
            data,
            seed=self._seed,
            device=self.device,
            progress=bool(self.verbose),
            report=print if self.verbose else lambda line: None,
            **{name: value for name, value in limits.items() if value is not None},
            **{"size": self.size, **options, **(self.options or {})},
        )
        return rows, held_out

    def _rows(self, x: Any) -> Float[Tensor, "N D"]:
        """Return X, checked, as rows in the codes of the density."""
        check_is_fitted(self, "run_")
        return encoded(columns_of(self, x, reset=False), self.run_.spec)[0]

    def _known_rows(self, x: Any) -> Float[Tensor, "N D"]:
        """Return X as rows, with categories that the fit did not see as missing values."""
        rows = self._rows(x)
        return rows.masked_fill(unseen(rows, self.run_.spec.columns), torch.nan)

    def _density(self) -> Density:
        """Return the density in float64. In float32 a product's rounding depends on the number of rows."""
        check_is_fitted(self, "run_")
        density = copy.deepcopy(self.run_.density)
        return (density.cpu() if density.device.type == "mps" else density).double()

    def _log_probs(
        self, x: Float[Tensor, "N D"], y: Shaped[Tensor, "N ..."] | None = None
    ) -> Float64[np.ndarray, " N"]:
        """Return log p of each row, given y where the density is conditional, with the noise of the fit's seed."""
        split = Split(x, y)
        density, _ = scorable(self._density(), split, self.run_.spec)
        return row_scores(density, split, seed=self._seed).nats.numpy()

    def save(self, path: str | Path) -> None:
        """Write the estimator as a run: a folder without pickle, which the commands of loglik read too.

        Raises FileExistsError if the folder is not empty.
        """
        check_is_fitted(self, "run_")
        write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """Return the estimator that `save` wrote. Raises ValueError if it is another one's, or damaged."""
        return read(cls, Path(path))


def _seed(random_state: Any) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _split_rows(n: int, y: Tensor | None, seed: int) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"]]:
    """Return the rows to train on and those to hold out; the first row of each class is trained on."""
    if n < MIN_ROWS:
        return torch.arange(n), torch.arange(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if y is not None:
        labels = y[order].numpy()
        first = np.zeros(n, dtype=bool)
        first[np.unique(labels, return_index=True)[1]] = True
        order = order[torch.from_numpy(np.argsort(first, kind="stable"))]
    count = math.ceil(HELD_OUT * n)
    return order[count:], order[:count]
