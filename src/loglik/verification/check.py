r"""A check: one statement of the notes, computed on a model and data, and the registry of all checks.

A check is a function of a `Subject` that returns a `Finding`, or several for a statement with parts. It is registered
under a name by the decorator `check`, and so are those of a user's own density:

    @check("heads-differ", section="Transformers and attention", statement=r"A_i \ne A_j")
    def heads_differ(subject):
        ...
        return Finding.at_least("the smallest distance of two heads' weights", distance, 1e-3)

It raises `DoesNotApply` with a reason where the statement is about something that the model does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from loglik.verification.subject import Subject

__all__ = ["CHECKS", "Z", "Check", "Finding", "check", "standard_error"]

Z = 4.0  # standard errors that chance may account for: 6e-5 of all true statements are beyond


@dataclass(frozen=True)
class Finding:
    """What a check computed.

    Attributes:
        computed: what was computed on this model and these data, in words.
        value: the number.
        expected: what the statement says of it, as `= 1`, `≤ 0`; empty where the number is only reported.
        tolerance: the largest distance from the statement that is accepted; infinite where it is only reported.
        stderr: the standard error of `value`; None where nothing is drawn at random.
        holds: whether the statement holds; None where the number is reported, not judged.
    """

    computed: str
    value: float
    expected: str = ""
    tolerance: float = math.inf
    stderr: float | None = None
    holds: bool | None = None

    @classmethod
    def equal(
        cls, computed: str, value: float, expected: float, *, tolerance: float = 0.0, stderr: float | None = None
    ) -> Finding:
        """Return a finding that holds if `value` is `expected` to the tolerance and Z standard errors."""
        allowed = tolerance + Z * (stderr or 0.0)
        return cls(computed, value, f"= {expected:.6g}", allowed, stderr, abs(value - expected) <= allowed)

    @classmethod
    def at_most(
        cls, computed: str, value: float, limit: float, *, tolerance: float = 0.0, stderr: float | None = None
    ) -> Finding:
        """Return a finding that holds if `value` is at most `limit`, to the tolerance and Z standard errors."""
        allowed = tolerance + Z * (stderr or 0.0)
        return cls(computed, value, f"≤ {limit:.6g}", allowed, stderr, value - limit <= allowed)

    @classmethod
    def at_least(
        cls, computed: str, value: float, limit: float, *, tolerance: float = 0.0, stderr: float | None = None
    ) -> Finding:
        """Return a finding that holds if `value` is at least `limit`, to the tolerance and Z standard errors."""
        allowed = tolerance + Z * (stderr or 0.0)
        return cls(computed, value, f"≥ {limit:.6g}", allowed, stderr, limit - value <= allowed)

    @classmethod
    def reported(cls, computed: str, value: float, *, stderr: float | None = None) -> Finding:
        """Return a finding that is shown and not judged."""
        return cls(computed, value, stderr=stderr)


Compute = Callable[[Subject], "Finding | Iterable[Finding]"]


@dataclass(frozen=True)
class Check:
    """A statement and the function that computes it.

    Attributes:
        name: what `--only` selects it by.
        section: the section of the notes.
        statement: the statement in the notes' notation, as LaTeX without dollars.
        compute: from a subject to a finding or several.
        says: the statement in words: the first line of the function's docstring.
    """

    name: str
    section: str
    statement: str
    compute: Compute
    says: str


CHECKS: dict[str, Check] = {}


def check(name: str, *, section: str, statement: str) -> Callable[[Compute], Compute]:
    """Register a function as a check; the first line of its docstring says the statement in words.

    Raises ValueError where another function has the name, or where the docstring is missing.
    """

    def register(compute: Compute) -> Compute:
        says = (compute.__doc__ or "").strip().split("\n")[0]
        if not says:
            raise ValueError(f"check {name!r} has no docstring: its first line says the statement in words")
        known = CHECKS.get(name)
        if known is not None and known.compute.__qualname__ != compute.__qualname__:
            raise ValueError(f"there is a check {name!r} already: choose another name")
        CHECKS[name] = Check(name, section, statement, compute, says)
        return compute

    return register


def standard_error(values: Float[Tensor, " N"]) -> float:
    """Return the standard error of the mean."""
    return values.double().std().item() / math.sqrt(len(values))
