"""A comparison or a run as one self-contained HTML page, and samples as files."""

from loglik.report.page import write_report
from loglik.report.samples import write_samples

__all__ = ["write_report", "write_samples"]
