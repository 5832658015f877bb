"""Estimators that transform rows: into the latents of a VAE, and into complete rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64
from sklearn.base import ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from loglik.autoregressive import AnyOrder
from loglik.evaluation.scores import evaluating
from loglik.recipes import build, recipe
from loglik.sklearn.base import Estimator
from loglik.sklearn.frames import columns_of, decoded, encoded, library_of, like_input, to_library
from loglik.tasks.fill import fill
from loglik.tasks.latents import Latents

__all__ = ["DensityImputer", "LatentEncoder"]

PIECE = 2**10  # rows that are filled together


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
        return Latents(self._density()).encode(self._rows(X)).cpu().numpy()

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
        n_draws: draws of each missing value; `autoregressive:any-order` knows its conditional means and draws none.
        sample_posterior: fill with one draw, so that columns keep their spread; else with the mean of the draws of a
            number, and the most frequent category.

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
        model: Any = "vae",
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> DensityImputer:
        """Train the density on the rows of X, complete or not. y is ignored."""
        if not (type(self.n_draws) is int and self.n_draws > 0):
            raise ValueError(f"n_draws must be an integer above 0, got {self.n_draws!r}")
        self._library = library_of(X)
        rows, spec = encoded(columns_of(self, X, reset=True, missing=True), None)
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
        frame = columns_of(self, X, reset=False, missing=True)
        rows, _ = encoded(frame.rename(dict(zip(frame.columns, [c.name for c in spec.columns], strict=True))), spec)
        missing = rows.isnan()
        filled = decoded(self._filled(rows, missing), spec)
        columns = []
        for d, series in enumerate(frame.iter_columns()):
            new = filled.to_series(d).alias(series.name)
            gaps = pl.Series(missing[:, d].numpy())
            columns.append(
                new
                if gaps.all()
                else new.zip_with(gaps, series.cast(new.dtype, strict=False))
                if gaps.any()
                else series
            )
        table, library = pl.DataFrame(columns), library_of(X)
        if library is None or not any(column.categories for column in spec.columns):
            return table.cast(pl.Float64).to_numpy()
        return to_library(table, library, getattr(X, "index", None))

    def _filled(self, rows: Float[Tensor, "N D"], missing: Bool[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        filled, at = rows.clone(), missing.any(1).nonzero().flatten()
        density = self._density()
        exact = density if isinstance(density, AnyOrder) and not self.sample_posterior else None
        draws = 1 if exact or self.sample_posterior else self.n_draws
        with evaluating(density, self._seed) as device:
            for some in at.split(max(1, PIECE // draws)) if len(at) else ():
                x, gaps = (t[some].repeat_interleave(draws, 0).to(device) for t in (rows, missing))
                drawn = exact.impute(x) if exact else fill(density, x, gaps)
                filled[some] = self._middle(drawn.cpu().view(len(some), draws, -1)).to(filled.dtype)
        return filled

    def _middle(self, drawn: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        """Return the mean of draws of a number, rounded of an integer, and the most frequent category."""
        columns = []
        for d, column in enumerate(self.run_.spec.columns):
            values = drawn[..., d]
            mean = values.double().mean(1)
            columns.append(
                values.mode(1).values.double() if column.categories else mean.round() if column.discrete else mean
            )
        return torch.stack(columns, 1)
