"""The theorems of the notes, as checks of any density: `verify` runs them on a user's own model and data."""

from loglik.verification.check import CHECKS, Check, Finding, check
from loglik.verification.page import print_verification, write_page
from loglik.verification.subject import DoesNotApply, Part, Subject
from loglik.verification.verify import CheckResult, Verification, verify

__all__ = [
    "CHECKS",
    "Check",
    "DoesNotApply",
    "Finding",
    "Part",
    "CheckResult",
    "Subject",
    "Verification",
    "check",
    "print_verification",
    "verify",
    "write_page",
]
