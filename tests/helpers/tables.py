"""Small tables whose columns are of every kind, and all the rows that can exist in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loglik.data.spec import Column, DataSpec

REACH = 6.0  # standard deviations that it covers to either side
INTEGERS = range(-60, 141)  # all that could matter


def boolean(name: str) -> Column:
    return Column(name=name, type="boolean", categories=("false", "true"))


def category(name: str, count: int) -> Column:
    return Column(name=name, type="categorical", categories=tuple("abcdefgh"[:count]))


def integer(name: str) -> Column:
    return Column(name=name, type="integer")


def real(name: str) -> Column:
    return Column(name=name, type="numeric")


def _hidden(n: int) -> Tensor:
    """What the columns of a row have in common."""
    return torch.randn(n)


def _code(h: Tensor, count: int, strength: float = 1.0) -> Tensor:
    noised = strength * h + torch.randn_like(h)
    return ((noised + 2) * count / 4).floor().clamp(0, count - 1)


TABLES: dict[str, tuple[tuple[Column, ...], Callable[[Tensor], list[Tensor]]]] = {
    "booleans": (
        (boolean("a"), boolean("b"), boolean("c")),
        lambda h: [_code(h, 2), _code(h, 2), _code(h, 2, 3.0)],
    ),
    "boolean and 3-way": ((boolean("a"), category("b", 3)), lambda h: [_code(h, 2), _code(h, 3)]),
    "3-ways": (
        (category("a", 3), category("b", 3)),
        lambda h: [_code(h, 3, 2.0), _code(h, 3, 2.0)],
    ),
    "integer with gaps": (
        (integer("n"), boolean("a")),
        lambda h: [5 * _code(h, 4), _code(h, 2)],
    ),
    "constant integer": ((integer("n"), boolean("a")), lambda h: [torch.full_like(h, 7.0), _code(h, 2)]),
    "one category": ((category("one", 1), category("b", 3)), lambda h: [torch.zeros_like(h), _code(h, 3)]),
    "rare category": ((category("a", 4), boolean("b")), lambda h: [(h > 2.2) * 2.0, _code(h, 2)]),
    "negative integers": (
        (category("a", 3), integer("n")),
        lambda h: [_code(h, 3), (3 * h - 4).round()],
    ),
    "boolean and real": ((boolean("a"), real("x")), lambda h: [_code(h, 2), 10 + 3 * h]),
    "real among codes": (
        (category("a", 3), real("x"), boolean("b")),
        lambda h: [_code(h, 3), 0.1 * h + 0.05 * torch.randn_like(h), _code(h, 2)],
    ),
    "every kind": (
        (category("a", 3), integer("n"), boolean("b")),
        lambda h: [_code(h, 3), (h.exp() * 2).floor(), _code(h, 2)],
    ),
}


def spec_of(name: str) -> DataSpec:
    columns, _ = TABLES[name]
    return DataSpec(kind="table", event_shape=(len(columns),), columns=columns)


def rows_of(name: str, n: int) -> Tensor:
    """n rows, whose columns depend on one another."""
    _, make = TABLES[name]
    return torch.stack(make(_hidden(n)), 1)


def every_row(name: str, x: Tensor, points: int) -> tuple[Tensor, float]:
    """Every row that can exist, with so many points in place of a real column, and what a point weighs."""
    values, weight = [], 1.0
    for d, column in enumerate(TABLES[name][0]):
        if column.categories:
            values.append(torch.arange(float(len(column.categories))))
        elif column.type == "integer":
            values.append(torch.arange(float(INTEGERS.start), INTEGERS.stop))
        else:
            reach = REACH * x[:, d].std()
            grid = x[:, d].mean() + torch.linspace(-reach, reach, points)
            values.append(grid)
            weight *= float(grid[1] - grid[0])
    return torch.cartesian_prod(*values), weight
