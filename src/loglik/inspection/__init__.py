"""Inspect a network: receptive fields, counts, gradient flow, equivariance, and cost against length."""

from loglik.inspection.cost import Cost, PowerLaw, fit_power, saved_bytes, sequence_cost
from loglik.inspection.counts import LayerCount, layer_counts
from loglik.inspection.equivariance import Translation, invariance_error, translation_error
from loglik.inspection.gradients import GradientFlow, LayerGradient, gradient_flow
from loglik.inspection.measure import Inspection, inspect, load_or_build
from loglik.inspection.measured_fields import effective_field, measured_fields
from loglik.inspection.page import write_page
from loglik.inspection.permutation import Permutation, permutation_error, permutation_errors
from loglik.inspection.receptive import ReceptiveField, receptive_fields
from loglik.inspection.singular_values import Spectrum, singular_values
from loglik.inspection.terminal import print_inspection

__all__ = [
    "Cost",
    "GradientFlow",
    "Inspection",
    "LayerCount",
    "LayerGradient",
    "Permutation",
    "PowerLaw",
    "ReceptiveField",
    "Spectrum",
    "Translation",
    "effective_field",
    "fit_power",
    "gradient_flow",
    "inspect",
    "invariance_error",
    "layer_counts",
    "load_or_build",
    "measured_fields",
    "permutation_error",
    "permutation_errors",
    "print_inspection",
    "receptive_fields",
    "saved_bytes",
    "sequence_cost",
    "singular_values",
    "translation_error",
    "write_page",
]
