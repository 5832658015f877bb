"""Rows with missing values for densities of complete rows: an imputer beside the density."""

from __future__ import annotations

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.missing import Imputed
from loglik.recipes.options import Size
from loglik.recipes.vae import VAEOptions
from loglik.recipes.vae import build as build_vae

__all__ = ["with_imputer"]


def with_imputer(density: Density, spec: DataSpec, *, size: Size, conditional: bool) -> Density:
    """Return the density for rows of a spec: itself, or beside a VAE that fills missing values if the spec has some."""
    if not spec.incomplete:
        return density
    return Imputed(density, build_vae(spec, VAEOptions(size=size, conditional=conditional)))
