"""The options of every model as text: for `loglik list models`, and as docs/options.md.

`python -m loglik.cli.reference > docs/options.md` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from loglik.recipes import RECIPES, recipe
from loglik.recipes.options import as_text

__all__ = ["describe", "markdown", "overview"]

WIDTH = 100
INDENT = 16
HEAD = """# Options

What `--set NAME=VALUE` and `loglik.fit(MODEL, data, NAME=VALUE)` accept for each model, beside the training settings.
`null` stands for a default that the data and the size choose. This page is generated:
`python -m loglik.cli.reference > docs/options.md`.
"""


def overview() -> str:
    """Return each family's name, summary, options and variants, for a terminal."""
    blocks = []
    for family in RECIPES.values():
        blocks.append(f"{family.name:<{INDENT}}{family.summary}")
        blocks.append(_indented(f"options: {', '.join(family.options)}"))
        if family.kinds:
            blocks.append(_indented(f"variants: {', '.join(f'{family.name}:{kind}' for kind in family.kinds)}"))
    return "\n".join(blocks)


def describe(name: str) -> str:
    """Return a model's summary, and each option with its default, its values and its help, for a terminal.

    Raises ValueError for an unknown model.
    """
    chosen = recipe(name)
    lines = [f"{chosen.name}: {chosen.summary}"]
    if ":" not in name and chosen.kinds:
        lines.append(f"variants: {', '.join(f'{name}:{kind}' for kind in chosen.kinds)}")
    for option in chosen.options.values():
        lines.append(f"\n{option.name}={as_text(option.default)}  ({option.values})")
        lines.append(fill(option.help, WIDTH, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def markdown() -> str:
    """Return the page docs/options.md: a table of options for each family."""
    return "\n".join([HEAD, *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    for family in RECIPES.values():
        yield f"## {family.name}\n\n{family.summary}"
        if family.kinds:
            names = ", ".join(f"`{family.name}:{kind}`" for kind in family.kinds if kind not in family.presets)
            yield f"\nVariants, each with `{family.variant}` set: {names}."
        for kind, preset in family.presets.items():
            yield f"`{family.name}:{kind}` sets {', '.join(f'`{key}={as_text(v)}`' for key, v in preset.items())}."
        yield "\n| option | default | values | |\n|---|---|---|---|"
        for option in family.options.values():
            text = option.help.replace("|", "\\|")
            yield f"| `{option.name}` | `{as_text(option.default)}` | {option.values} | {text} |"
        yield ""


def _indented(text: str) -> str:
    return fill(text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * (INDENT + 2), break_on_hyphens=False)


if __name__ == "__main__":
    print(markdown(), end="")
