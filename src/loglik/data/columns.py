"""What each column of a table is read as: its type, what is left out and why, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from loglik.data.labels import natural
from loglik.data.limits import quote, shorten, some
from loglik.data.moments import EXACT, ambiguous
from loglik.data.numbers import FORMS, MAX_DECIMALS, WRITTEN
from loglik.data.profile import MAX_CATEGORIES, STRINGS, Profile, Where
from loglik.data.spec import Column, DataSpec

__all__ = ["INDICATOR", "OneColumn", "Read", "read_columns", "set_decimal_mark"]

LONGEST_CATEGORY = 1000  # characters: config.yaml holds all categories
INDICATOR = " is missing"  # ends the name of a column that says whether another's value is missing


class OneColumn(ValueError):
    """A table's only column cannot be modelled; a language model may accept it."""


class LeftOut(Exception):
    """A column is not modelled; the message is the reason."""


class Read:
    """The columns of a table as they are read.

    Attributes:
        columns: those that are modelled.
        left_out: the names of the others, each with the reason.
        notes: of a column's name, what was decided in reading it.
    """

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.left_out: list[tuple[str, str]] = []
        self.notes: dict[str, str] = {}

    def lines(self) -> list[str]:
        """Return one line for each column that is left out, and for each that has a note."""
        left = [f"column {quote(name)} is left out: {reason}" for name, reason in self.left_out]
        return left + [f"column {quote(name)}: {note}" for name, note in self.notes.items()]

    def spec(self, label: str | None, classes: tuple[str, ...] = ()) -> DataSpec:
        """Return the spec of a table of these columns."""
        return DataSpec(
            kind="table",
            event_shape=(len(self.columns),),
            classes=classes,
            columns=tuple(self.columns),
            label=label,
            left_out=tuple(self.left_out),
        )


def read_columns(profiles: Sequence[Profile], source: str, where: Where, *, missing: str = "model") -> Read:
    """Return what columns are read as.

    Raises ValueError where a column cannot be what the user wants, where the numbers of a column may be read in two
    ways, and where no column is left; of a single column it is OneColumn.
    """
    read = Read()
    set_decimal_mark(profiles)
    for profile in profiles:
        try:
            column, notes = _column(profile, source, where)
        except LeftOut as reason:
            read.left_out.append((profile.name, str(reason)))
            continue
        if notes:
            read.notes[profile.name] = "; ".join(notes)
        read.columns.append(column)
        if column.missing and missing == "indicator":
            name = f"{column.name}{INDICATOR}"
            if any(other.name == name for other in profiles):
                raise ValueError(f"{source}: two columns would be named {quote(name)}: rename the one of the table")
            read.columns.append(Column(name=name, type="boolean", categories=("false", "true"), indicates=column.name))
    if not read.columns:
        reasons = "; ".join(f"{shorten(name, 40)}: {reason}" for name, reason in read.left_out[:3])
        error = OneColumn if len(profiles) == 1 else ValueError
        raise error(f"{source}: no column can be modelled ({reasons})")
    return read


def set_decimal_mark(profiles: Sequence[Profile]) -> None:
    """Tell each profile the decimal mark of the table's other columns, if they have one."""
    marks = {mark for profile in profiles if (mark := profile.mark)}
    for profile in profiles:
        profile.decimal_mark = marks.copy().pop() if len(marks) == 1 else ""


def _column(profile: Profile, source: str, where: Where) -> tuple[Column, list[str]]:
    """Return a column and what was decided about it."""
    kind, notes, reads_as = profile.kind, list[str](), profile.reads_as
    if kind == "ignore":
        raise LeftOut("ignored, as requested")
    if reads_as == "nothing":
        raise LeftOut("it has no values")
    if kind == "boolean" and reads_as == "category":
        return _boolean(profile, source), []
    if kind in ("integer", "numeric") and reads_as != "number":
        raise ValueError(_unlike(profile, source, where, "a number"))
    if profile.dated and reads_as != "moment":
        raise ValueError(_unlike(profile, source, where, "a date in this form"))
    if reads_as == "number":
        column = _number(profile, source, notes)
    elif reads_as == "moment":
        column = _moment(profile, notes)
    elif reads_as == "boolean":
        column = Column(name=profile.name, type="boolean", categories=_words(profile))
    elif reads_as == "category":
        column = Column(name=profile.name, type="categorical", categories=_categories(profile, source, where))
    else:
        raise LeftOut(f"it holds {shorten(reads_as, 60)}, which is no number, text, boolean, date or time")
    among = sum(profile.not_given.values()) if reads_as in ("number", "moment") else 0
    if among:
        texts = ", ".join(map(quote, profile.not_given))
        notes.append(f"{texts} {'is' if len(profile.not_given) == 1 else 'are'} read as missing ({among:,})")
    return replace(column, missing=column.missing or profile.missing + among > 0), notes


def _unlike(profile: Profile, source: str, where: Where, what: str) -> str:
    """Return the error of a column that is not what the user wants."""
    if what == "a number" and (odd := profile.odd_one_out):
        return f"{where(odd[0], profile.name)}: {quote(odd[1])} is not a number, as requested"
    examples = ", ".join(map(quote, profile.examples)) or str(profile.dtype)
    return f"{source}: column {quote(profile.name)} is to be read as {profile.kind}, but it holds {examples}"


def _number(profile: Profile, source: str, notes: list[str]) -> Column:
    name, kind, form = profile.name, profile.kind, profile.number_form
    if not form:
        first = profile.forms.first
        raise ValueError(
            f"{source}: column {quote(name)}: {quote(first)} has a decimal comma or a separator of thousands: write "
            f"{first.replace(',', '.')} or {first.replace(',', '')}"
        )
    if form != "point":
        notes.append(f"numbers with {FORMS[form]}, as {quote(profile.forms.first)}")
    if profile.forms.zeros and not kind:
        first = quote(profile.forms.zeros)
        notes.append(f"{first} is read as a number; if it is a code, pass columns={{{quote(name)}: 'category'}}")
    shown = profile.numbers
    exact = shown.integral and shown.low >= -EXACT and shown.high <= EXACT
    if kind == "integer" and not exact:
        raise ValueError(
            f"{source}: column {quote(name)} is to be read as integer, but it holds numbers that are no integers "
            f"within ±{EXACT:,}"
        )
    if exact and (kind == "integer" or (kind == "" and _integers(profile))):
        return Column(name=name, type="integer", missing=shown.nan > 0)
    decimals = shown.decimals if shown.decimals <= MAX_DECIMALS else None
    return Column(name=name, type="numeric", decimals=decimals, missing=shown.nan > 0)


def _integers(profile: Profile) -> bool:
    """Return whether integral numbers are integers: those of a real type are where values are missing.

    NumPy and pandas have no integers that may be missing.
    """
    gaps = profile.missing + sum(profile.not_given.values()) + profile.numbers.nan > 0
    return gaps or profile.dtype.is_integer() or (profile.dtype in STRINGS and not profile.forms.dotted)


def _moment(profile: Profile, notes: list[str]) -> Column:
    forms = list(profile.spans or {})
    if ambiguous(forms):
        ways = " or ".join(form.format for form in forms)
        raise LeftOut(
            f"{quote(profile.examples[0])} may be {ways}: say which, as columns={{{quote(profile.name)}: "
            f"{quote(forms[0].format)}}}"
        )
    assert profile.spans
    column, lost = profile.spans[forms[0]].column(profile.name, forms[0], missing=False)
    if forms[0].format:
        notes.append(f"dates in the form {forms[0].format}, as {quote(profile.examples[0])}")
    if lost:
        notes.append(lost)
    return column


def _words(profile: Profile) -> tuple[str, ...]:
    """Return the two categories of a boolean column, as they are written if each is written in one way."""
    if profile.dtype == pl.Boolean or profile.words[0][1] == "true":
        return ("false", "true")
    assert profile.categories is not None
    spelled = sorted(profile.categories.to_list(), key=str.lower)
    return tuple(spelled) if [text.lower() for text in spelled] == ["no", "yes"] else ("no", "yes")


def _boolean(profile: Profile, source: str) -> Column:
    assert profile.categories is not None or profile.too_many_at
    if profile.words:
        return Column(name=profile.name, type="boolean", categories=_words(profile), missing=profile.missing > 0)
    categories = [] if profile.categories is None else profile.categories.to_list()
    if len(categories) != 2:
        raise ValueError(
            f"{source}: column {quote(profile.name)} is to be read as boolean, but it holds "
            f"{profile.distinct:,} distinct values: {some(sorted(categories, key=natural)) or 'too many'}"
        )
    pair = tuple(sorted(categories, key=natural))
    return Column(name=profile.name, type="boolean", categories=pair, missing=profile.missing > 0)


def _categories(profile: Profile, source: str, where: Where) -> tuple[str, ...]:
    if profile.dtype == pl.Enum and profile.kind != "category":
        return tuple(profile.dtype.categories.to_list())
    categories = [] if profile.categories is None else sorted(profile.categories.to_list(), key=natural)
    written = [text for text in categories if WRITTEN.fullmatch(text)]
    strange = next((text for text in written if re.search(r"[,'\u2019\s]|\..*\.", text.strip())), None)
    if strange and len(written) == len(categories) and not profile.kind and not profile.typed:
        raise ValueError(
            f"{source}: column {quote(profile.name)} has numbers written as {quote(strange)}, and others in another "
            'form: write them in one form, or pass columns={"' + profile.name + '": "category"}'
        )
    if (odd := profile.odd_one_out) and profile.distinct > 10 and not profile.kind:
        raise ValueError(
            f"{where(odd[0], profile.name)}: {quote(odd[1])} is not a number, though most of the column is: mend it, "
            'or pass columns={"' + profile.name + '": "category"}'
        )
    if profile.too_many_at:
        raise LeftOut(f"it has more than {MAX_CATEGORIES:,} distinct texts, too many for categories")
    if len(categories) > max(20, profile.present // 2) and profile.kind != "category":
        raise LeftOut(
            f"it has {len(categories):,} distinct texts in {profile.present:,} values, too many for categories"
        )
    if long := next((text for text in categories if len(text) > LONGEST_CATEGORY), None):
        raise LeftOut(f"the text {quote(long)} is longer than a category, of at most {LONGEST_CATEGORY:,} characters")
    return tuple(categories)
