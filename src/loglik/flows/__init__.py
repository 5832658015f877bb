"""Normalizing flows: learned invertible transforms, and the density that they make of a base."""

from loglik.flows.coupling import SplineCoupling
from loglik.flows.elementwise import ElementwiseSpline
from loglik.flows.flow import Flow
from loglik.flows.spline import rational_quadratic_spline

__all__ = ["Flow", "SplineCoupling", "ElementwiseSpline", "rational_quadratic_spline"]
