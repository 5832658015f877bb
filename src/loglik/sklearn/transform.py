"""Estimators that transform rows: into the latents of a VAE, and into complete rows."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from sklearn.base import ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from loglik.data.decode import as_text, decode
from loglik.evaluation.scores import evaluating
from loglik.recipes import build, recipe
from loglik.sklearn.base import Estimator
from loglik.sklearn.frames import columns_of, encoded, library_of, like_input, to_library
from loglik.tasks.fill import fill
from loglik.tasks.latents import Latents

__all__ = ["DensityImputer", "LatentEncoder"]

PIECE = 2**10  # rows that are filled together


@runtime_checkable
class Imputes(Protocol):
    """A density that knows the conditional mean of each missing value."""

    def impute(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return x with NaN replaced by the conditional mean of a number, and the most probable category."""
        ...


class LatentEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """The latents of a VAE: `transform` returns the posterior means, `inverse_transform` the expected rows.

    X is an array or a data frame, as of `DensityEstimator`.

    Args:
        n_components: the number of latents; chosen from the number of columns if None.
        model: `vae`; the other arguments are those of every estimator.

    Attributes:
        run_, n_features_in_, feature_names_in_: as of `DensityEstimator`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> encoder = LatentEncoder(2, max_steps=3, random_state=0).fit(x)
    >>> encoder.transform(x).shape, encoder.inverse_transform(encoder.transform(x)).shape
    ((100, 2), (100, 3))
    """

    def __init__(
        self,
        n_components: Any = None,
        *,
        model: Any = "vae",
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
        self.n_components = n_components

    def fit(self, X: Any, y: Any = None) -> LatentEncoder:
        """Train the VAE on X. y is ignored."""
        if recipe(self.model).family != "vae":
            raise ValueError(f"a {self.model} has no latents that LatentEncoder knows: use model='vae'")
        options = {} if self.n_components is None else {"latent": self.n_components}
        self._fit_rows(X, **options)
        self._n_features_out = Latents(self.run_.density).vae.latent
        return self

    def transform(self, X: Any) -> Float64[np.ndarray, "N L"]:
        """Return the posterior means of the latents."""
        return Latents(self._density()).encode(self._known_rows(X)).cpu().numpy()

    def inverse_transform(self, X: Any) -> Any:
        """Return the expected rows given latents: an array, or a data frame of the library of the training data."""
        check_is_fitted(self, "run_")
        z = check_array(X, input_name="X", dtype=np.float64, estimator=self)
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"X has {z.shape[1]} latents, but LatentEncoder has {self._n_features_out}")
        return like_input(Latents(self._density()).decode(torch.tensor(z)), self.run_.spec, self._library)


class DensityImputer(OneToOneFeatureMixin, TransformerMixin, Estimator):
    """Missing values of rows, NaN or null, filled in by a density of the rows, p(missing | observed).

    A family that models missing values is trained on all rows of X, another one on the complete rows.

    X is an array or a data frame, as of `DensityEstimator`; `transform` returns an array, or a data frame if X is one
    with columns of texts or booleans. Values that are there stay as they are.

    Args:
        model: the family's name; the other arguments are those of every estimator.
        n_draws: draws of each missing value, for a family that has no conditional means.
        sample_posterior: fill with one draw, so that columns keep their spread; else with the mean of a number, and the
            most probable category: exact for `autoregressive:any-order`, and those of the draws for other families.

    Attributes:
        run_, n_features_in_, feature_names_in_: as of `DensityEstimator`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> imputer = DensityImputer(max_steps=3, random_state=0).fit(x)
    >>> imputer.transform(np.array([[1.0, np.nan]])).shape
    (1, 2)
    """

    def __init__(
        self,
        model: Any = "autoregressive:any-order",
        *,
        n_draws: Any = 20,
        sample_posterior: Any = False,
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
        self.n_draws = n_draws
        self.sample_posterior = sample_posterior

    def fit(self, X: Any, y: Any = None) -> DensityImputer:
        """Train the density on the rows of X, complete or not. y is ignored."""
        if not (type(self.n_draws) is int and self.n_draws > 0):
            raise ValueError(f"n_draws must be an integer above 0, got {self.n_draws!r}")
        self._library = library_of(X)
        rows, spec = encoded(columns_of(self, X, reset=True), None)
        if rows.isnan().any() and not build(self.model, spec, size=self.size).marginalises:
            rows = rows[~rows.isnan().any(1)]
            if len(rows) < 2:
                raise ValueError(f"{self.model} is trained on complete rows, and X has n_samples={len(rows)} of them")
        self._train(rows, spec, None)
        return self

    def transform(self, X: Any) -> Any:
        """Return X with its missing values filled."""
        check_is_fitted(self, "run_")
        spec = self.run_.spec
        frame, rows = columns_of(self, X, reset=False), self._known_rows(X)
        filled = self._filled(rows)
        if library_of(X) is None or not any(column.categories or column.temporal for column in spec.columns):
            return np.where(rows.isnan(), filled.double(), frame.cast(pl.Float64).to_numpy())
        columns = []
        values = decode(filled, spec.columns).iter_columns()
        for series, new, column in zip(frame.iter_columns(), values, spec.columns, strict=True):
            if series.dtype == pl.String:
                new = new.dt.to_string(column.written) if column.written else as_text(new)
            elif series.dtype != pl.Null:
                new = new.cast(series.dtype, strict=False)
            if series.dtype != pl.Null:
                known = series.fill_nan(None) if series.dtype.is_float() else series
                new = known.fill_null(new)
            columns.append(new)
        table = pl.DataFrame(columns)
        names = getattr(X, "column_names", X.columns)
        return to_library(table.rename(dict(zip(table.columns, map(str, names), strict=True))), library_of(X), X)

    def _filled(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        filled, at = rows.clone(), rows.isnan().any(1).nonzero().flatten()
        density, exact = self._density(), not self.sample_posterior
        draws = self.n_draws if exact else 1
        with evaluating(density, self._seed) as device:
            for some in at.split(max(1, PIECE // draws)) if len(at) else ():
                if exact and isinstance(density, Imputes):
                    middle = self._rounded(density.impute(rows[some].to(device)).cpu().double())
                else:
                    x = rows[some].repeat_interleave(draws, 0).to(device)
                    middle = self._middle(fill(density, x, x.isnan()).cpu().view(len(some), draws, -1))
                filled[some] = middle.to(filled.dtype)
        return torch.where(rows.isnan(), filled, rows)

    def _middle(self, drawn: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        """Return the mean of draws of a number, rounded of an integer, and the most frequent category."""
        is_code = torch.tensor([bool(column.categories) for column in self.run_.spec.columns])
        return self._rounded(torch.where(is_code, drawn.mode(1).values.double(), drawn.double().mean(1)))

    def _rounded(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.where(torch.tensor(self.run_.spec.discrete_dims), values.round(), values)
