"""Subjects for the checks of `loglik.verification`, and copies of them that are broken on purpose."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import loglik
import loglik.verification.statements
from loglik.density import Density
from loglik.verification import CHECKS, Subject
from loglik.verification.verify import run_check
from loglik.verification.verify import subject_of as subject_of_run


def subject_of(model: str, data: Any, *, train: int = 5, seed: int = 0, label: str | None = None, **options: Any):
    """A model trained for a few steps on data, with its held-out split."""
    run = loglik.fit(model, data, max_steps=train, seed=seed, progress=False, label=label, **options)
    return subject_of_run(run, run.data_for(data), seed=seed)


def outcome(name: str, subject: Subject) -> str:
    """What a check finds; its numbers are printed, which pytest shows where a test fails."""
    row = run_check(CHECKS[name], subject)
    print(name, row.outcome, row.reason, *row.findings, sep="\n  ")
    return row.outcome


def broken(subject: Subject, kind: type[Density] | None = None, /, **methods: Any) -> Subject:
    """The subject with methods of its density (or of the first part of a kind) replaced, its weights as they are."""
    density = copy.deepcopy(subject.density)
    part = next(m for m in density.modules() if isinstance(m, kind or type(density)))
    part.__class__ = type(f"Broken{type(part).__name__}", (type(part),), methods)
    return replace(subject, density=density)
