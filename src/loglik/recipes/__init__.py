"""Good defaults: for a family's name and a DataSpec, a density."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.recipes.autoregressive import AUTOREGRESSIVE, AutoregressiveOptions
from loglik.recipes.classifier import CLASSIFIER, ClassifierOptions
from loglik.recipes.diffusion import DIFFUSION, DiffusionOptions
from loglik.recipes.flow import FLOW, FlowOptions
from loglik.recipes.independent import INDEPENDENT, IndependentOptions
from loglik.recipes.mixture import MIXTURE, MixtureOptions
from loglik.recipes.options import Option, Options, check_types, option
from loglik.recipes.recipe import Recipe, Unsuitable
from loglik.recipes.vae import VAE_RECIPE, VAEOptions

__all__ = [
    "RECIPES",
    "AutoregressiveOptions",
    "ClassifierOptions",
    "DiffusionOptions",
    "FlowOptions",
    "IndependentOptions",
    "MixtureOptions",
    "Option",
    "Options",
    "Recipe",
    "Unsuitable",
    "VAEOptions",
    "build",
    "check_types",
    "option",
    "recipe",
]

RECIPES: dict[str, Recipe[Any]] = {
    r.name: r for r in (INDEPENDENT, CLASSIFIER, AUTOREGRESSIVE, FLOW, VAE_RECIPE, DIFFUSION, MIXTURE)
}


def recipe(name: str) -> Recipe[Any]:
    """Return the recipe of a family, or of a variant: `flow:glow` is the flow's with kind=glow, `vae:flow` the VAE's
    with prior=flow."""
    family, colon, kind = name.partition(":")
    if family not in RECIPES:
        raise ValueError(f"unknown model {name!r}: use {', '.join(RECIPES)}")
    chosen = RECIPES[family]
    if not colon:
        return chosen
    if kind not in chosen.kinds:
        known = ", ".join(f"{family}:{k}" for k in chosen.kinds)
        raise ValueError(f"unknown model {name!r}: " + (f"use {known}" if known else f"{family} has no variants"))
    training = chosen.training_by_kind.get(kind, chosen.training)
    return replace(chosen, name=name, preset=chosen.variant_options(kind), training=training)


def build(name: str, spec: DataSpec, **options: Any) -> Density:
    """Return an untrained density of a family for data of a spec.

    Raises `Unsuitable` if the family cannot model the data, and ValueError for an unknown option or a wrong value.
    """
    chosen = recipe(name)
    return chosen.build(spec, chosen.parse(options))
