"""What a network sees, costs and passes back: receptive fields, counts, gradient flow, equivariance, cost in length."""

from loglik.inspection.cost import Cost, PowerLaw, fit_power, held_bytes, sequence_cost
from loglik.inspection.counts import LayerCount, layer_counts
from loglik.inspection.equivariance import (
    Permutation,
    Translation,
    invariance_error,
    permutation_error,
    permutation_errors,
    translation_error,
)
from loglik.inspection.gradients import GradientFlow, LayerGradient, Spectrum, gradient_flow, singular_values
from loglik.inspection.measure import Inspection, find, inspect
from loglik.inspection.page import print_inspection, write_page
from loglik.inspection.receptive import ReceptiveField, effective_field, measured_fields, receptive_fields

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
    "find",
    "fit_power",
    "gradient_flow",
    "held_bytes",
    "inspect",
    "invariance_error",
    "layer_counts",
    "measured_fields",
    "permutation_error",
    "permutation_errors",
    "print_inspection",
    "receptive_fields",
    "sequence_cost",
    "singular_values",
    "translation_error",
    "write_page",
]
