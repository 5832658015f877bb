"""A comparison or a run as one self-contained HTML page, as a table on the terminal; samples and anomalies as files."""

from loglik.report.anomalies import write_anomalies
from loglik.report.page import write_report
from loglik.report.samples import numbered, samples_file, write_samples
from loglik.report.terminal import print_classes, print_comparison

__all__ = [
    "numbered",
    "print_classes",
    "print_comparison",
    "samples_file",
    "write_anomalies",
    "write_report",
    "write_samples",
]
