"""Estimators that transform rows: into the latents of a VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from loglik.recipes import recipe
from loglik.sklearn.base import Estimator
from loglik.sklearn.frames import like_input
from loglik.tasks.latents import Latents

__all__ = ["LatentEncoder"]


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
