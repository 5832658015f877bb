"""verify: run every check that applies to a model, and say which statements of the notes hold for it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from loglik import files
from loglik.adapters import as_density
from loglik.data import as_data
from loglik.data.dataset import Data
from loglik.density import Density, evaluation_mode
from loglik.devices import fork_generators
from loglik.runs import Run
from loglik.verification.check import CHECKS, Check, Finding
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["Outcome", "CheckResult", "Verification", "verify"]

Outcome = Literal["holds", "fails", "reported", "does not apply"]


@dataclass(frozen=True)
class CheckResult:
    """A statement and what was found of it on a model.

    Attributes:
        check: the statement.
        findings: what was computed; empty where it does not apply.
        outcome: `holds`, `fails`, `reported` (a number that is not judged) or `does not apply`.
        reason: why it does not apply, or the error that a failing check ended with.
        seconds: the time that it took.
    """

    check: Check
    findings: tuple[Finding, ...]
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite become null."""
        findings = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(finding).items()}
            for finding in self.findings
        ]
        return {
            "name": self.check.name,
            "section": self.check.section,
            "statement": self.check.statement,
            "says": self.check.says,
            "outcome": self.outcome,
            "reason": self.reason,
            "findings": findings,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Verification:
    """All rows of one model on one data set."""

    model: str
    data: str
    rows: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The statements that fail."""
        return tuple(row for row in self.rows if row.outcome == "fails")

    def count(self, outcome: Outcome) -> int:
        """Return how many statements have an outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    def write_json(self, path: Path) -> None:
        """Write the rows as a list of objects, one a statement."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([row.to_dict() for row in self.rows], indent=2, ensure_ascii=False)
        with files.naming(path):
            path.write_text(text + "\n", encoding="utf-8")


def verify(
    model: Run | Density | Any,
    data: Any = None,
    *,
    only: str | Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
) -> Verification:
    """Run the checks on a run or a density, and return one row for each statement.

    Args:
        model: a run, a density, or a model of a library that `loglik.adapters` knows.
        data: what `fit` accepts; the run's own data if None.
        only: names of checks, or beginnings of names; all if None.
        split: the split whose first 256 examples are used: train, validation, test or all; if None, the test split.
        seed: of everything that is drawn.

    Raises ValueError where no check has a name in `only`, or where a density is passed without data.
    """
    if isinstance(model, Run):
        run, dataset = model, model.data_for(data)
    elif data is None:
        raise ValueError("pass data: a density by itself does not know what it was trained on")
    else:
        dataset = as_data(data)
        run = Run(as_density(model, dataset.spec), dataset.spec)
    return verify_subject(subject_of(run, dataset, split=split, seed=seed), selected(only))


def subject_of(run: Run, data: Data, *, split: str | None = None, seed: int = 0) -> Subject:
    """Return what the checks run on: a run's density and options, with a split of data, the test split if None."""
    options = dict(run.config.get("options", {}))
    return Subject(run.density, data, run.model, options, split or data.scored_split, seed)


def verify_subject(subject: Subject, checks: Sequence[Check]) -> Verification:
    """Run checks on a subject, each from the same seed, so that one by itself finds what it finds among all."""
    with evaluation_mode(subject.density):
        rows = tuple(run_check(check, subject) for check in checks)
    return Verification(subject.model, subject.data.name, rows)


def selected(only: str | Sequence[str] | None) -> list[Check]:
    """Return the checks that `only` names, in the order of the registry."""
    import loglik.verification.statements  # noqa: F401  fills the registry

    if only is None:
        return list(CHECKS.values())
    names = [only] if isinstance(only, str) else list(only)
    for name in names:
        if not any(known.startswith(name) for known in CHECKS):
            raise ValueError(f"there is no check {name!r}: the checks are {', '.join(CHECKS)}")
    return [check for check in CHECKS.values() if check.name.startswith(tuple(names))]


def run_check(check: Check, subject: Subject) -> CheckResult:
    """Run one check; an error inside it is a statement that fails, with the error as the reason."""
    start = time.perf_counter()
    findings: tuple[Finding, ...] = ()
    outcome: Outcome = "reported"
    reason = ""
    try:
        with fork_generators(subject.density.device):
            torch.manual_seed(subject.seed)
            found = check.compute(subject)
            findings = (found,) if isinstance(found, Finding) else tuple(found)
        judged = [finding.holds for finding in findings if finding.holds is not None]
        outcome = "reported" if not judged else "holds" if all(judged) else "fails"
    except DoesNotApply as why:
        outcome, reason = "does not apply", str(why)
    except Exception as error:  # a user's density may raise anything, and the other statements are still worth knowing
        outcome, reason = "fails", f"{type(error).__name__}: {' '.join(str(error).split())}"
    return CheckResult(check, findings, outcome, reason, time.perf_counter() - start)


def ordered(rows: Sequence[CheckResult]) -> Iterator[tuple[str, list[CheckResult]]]:
    """Yield each section of the notes with its rows, in the order of the registry."""
    sections: dict[str, list[CheckResult]] = {}
    for row in rows:
        sections.setdefault(row.check.section, []).append(row)
    yield from sections.items()
