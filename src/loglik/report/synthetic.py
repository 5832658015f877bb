"""The report's section on synthetic rows: fidelity and privacy, with verdicts."""

from __future__ import annotations

from typing import Any

from loglik.tasks import SyntheticReport

__all__ = ["synthetic_content"]

SHOWN = 5  # columns, and pairs, that are least alike


def synthetic_content(found: SyntheticReport | None) -> dict[str, Any] | None:
    """Return what the template shows; None if there is no report."""
    if found is None:
        return None
    f, p = found.fidelity, found.privacy
    near = p.nearest
    usual = f"{100 * near.expected:.1f} ± {100 * near.usual:.1f} %"
    columns = sorted(f.shapes.items(), key=lambda item: item[1])[:SHOWN]
    pairs = sorted(f.pairs.items(), key=lambda item: item[1])[:SHOWN]
    return {
        "n": f"{f.n:,}",
        "against": found.against,
        "fidelity": found.fidelity_verdict,
        "privacy": found.privacy_verdict,
        "rows": [
            ("column shapes", f"{f.shape:.1%}", "100 %"),
            ("pair trends", f"{f.trend:.1%}", "100 %"),
            ("AUC of a classifier of real rows and samples", f"{f.test.auc:.2f} ± {f.test.stderr:.2f}", "0.5"),
            ("samples nearest to a training row", f"{near.share:.1%}", usual),
            ("samples that equal a training row", f"{near.copies:.1%}", f"{near.natural_copies:.1%} of held-out rows"),
            ("log p of training rows, less that of held-out rows", f"{p.gap:.2f} ± {p.gap_stderr:.2f} nats", "0"),
            ("pairs in which log p finds the training row", f"{p.guess:.1%}", "50 %"),
        ],
        "least": [(name, f"{score:.1%}") for name, score in columns]
        + [(" and ".join(names), f"{score:.1%}") for names, score in pairs],
    }
