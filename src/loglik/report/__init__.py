"""A comparison or a run as one self-contained HTML page, and samples as files."""

from loglik.report.continuation import continue_text
from loglik.report.page import write_report
from loglik.report.samples import write_samples

__all__ = ["continue_text", "write_report", "write_samples"]
