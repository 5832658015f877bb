"""Good defaults: for a family's name and a DataSpec, a density."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.recipes.autoregressive import AUTOREGRESSIVE
from loglik.recipes.classifier import CLASSIFIER
from loglik.recipes.diffusion import DIFFUSION
from loglik.recipes.flow import FLOW
from loglik.recipes.independent import INDEPENDENT
from loglik.recipes.recipe import Recipe, Unsuitable, check_options
from loglik.recipes.vae import VAE_RECIPE

__all__ = ["RECIPES", "Recipe", "Unsuitable", "build", "recipe"]

RECIPES: dict[str, Recipe] = {r.name: r for r in (INDEPENDENT, CLASSIFIER, AUTOREGRESSIVE, FLOW, VAE_RECIPE, DIFFUSION)}


def recipe(name: str) -> Recipe:
    """The recipe of a family's name, or of a variant's: `flow:glow` is the flow's with kind=glow, `vae:flow` the VAE's
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
    return replace(chosen, name=name, build=partial(chosen.build, **{chosen.variant: kind}), training=training)


def build(name: str, spec: DataSpec, **options: Any) -> Density:
    """An untrained density of a family for data of a spec.

    Raises `Unsuitable` where the family cannot take the data, and ValueError for an unknown option or a wrong value.
    """
    chosen = recipe(name)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}: it has {', '.join(chosen.options)}")
    check_options(options, chosen.options)
    return chosen.build(spec, **options)
