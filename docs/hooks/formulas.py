"""A hook of the site: formulas become MathML when it is built, so that pages need neither scripts nor a network."""

import html
import re

from loglik.report.mathml import mathml

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, page, **kwargs) -> str:
    """Replace each formula of a page."""
    return FORMULA.sub(lambda match: formula(match[2], page.file.src_path), content)


def formula(text: str, where: str) -> str:
    """Return \\(...\\) or \\[...\\] as MathML; ValueError names the page where LaTeX is not understood."""
    latex = html.unescape(text).strip()
    display = "block" if latex.startswith(r"\[") else "inline"
    latex = latex[2:-2].strip()
    try:
        found = mathml(latex, display)
    except Exception as error:
        raise ValueError(f"{where}: the formula {latex!r} is not understood: {type(error).__name__} {error}") from error
    if re.search(r"<m(text|i|o)>\\[a-z]", found):
        raise ValueError(f"{where}: the formula {latex!r} holds a command that is not understood")
    return found if display == "inline" else f'<div class="formula">{found}</div>'
