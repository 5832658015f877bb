"""A density and a split to score."""

from helpers import densities
from helpers.densities import SPECS, draw, tiny
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec


def scored(family: str, spec: DataSpec = SPECS["image"], n: int = 100, **options):
    """Return a density in evaluation mode and a split of a spec."""
    density = tiny(family, spec, **options)
    x, y = draw(spec, n)
    density.initialise(*((y, x) if density.event == "y" else (x, y)))
    densities.perturb(density)
    return density.eval(), Split(x, y)
