"""Formulas as MathML for pages that need neither scripts nor a network.

latex2mathml converts LaTeX; what browsers need beyond its result is added here: characters for styled letters, spaces
around functions, signs, bars that do not stretch, and columns that are aligned by style.
"""

from __future__ import annotations

import unicodedata
import xml.etree.ElementTree as ET
from typing import Literal

from latex2mathml.converter import convert

__all__ = ["mathml"]

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ROWS = ("math", "mrow", "mtd", "mstyle", "mpadded")  # elements with any number of children
FUNCTIONS = ("log", "ln", "exp", "sin", "cos", "tan", "tanh", "dim", "ker")
THIN = {"width": "0.167em"}
OPERATORS = {"~": "\u223c", "\u27fa": "\u27fa", "\u00b1": "\u00b1"}  # relations that latex2mathml writes as names
CLOSING = (")", "]", "}")
BARS = ("|", "\N{DOUBLE VERTICAL LINE}")

ET.register_namespace("", NAMESPACE)


def mathml(latex: str, display: Literal["block", "inline"] = "block") -> str:
    """Return a formula as MathML; commands that are not known stay as text, with their backslash."""
    return _typeset(convert(latex.replace("{aligned}", "{align*}"), display=display))


def _typeset(source: str) -> str:
    """Return latex2mathml's MathML with operators, spaces, short bars, columns and styled letters."""
    root = ET.fromstring(source)
    for element in list(root.iter()):
        name = _name(element)
        if name == "mo" and element.text in BARS and not element.attrib:
            element.attrib.update(stretchy="false", lspace="0", rspace="0")
        if name == "mi" and (style := element.attrib.pop("mathvariant", None)):
            _style(element, style)
        if name == "mi" and element.text in OPERATORS:
            element.tag, element.text = f"{{{NAMESPACE}}}mo", OPERATORS[element.text]
        if name == "mtable":
            _align(element)
        if name in ROWS:
            _mark_signs(element)
            _space_functions(element)
    return ET.tostring(root, encoding="unicode")


def _style(element: ET.Element, style: str) -> None:
    """Replace a styled letter by the character of its own that MathML Core requires; keep styles without one."""
    for kind in (f"MATHEMATICAL {style.upper()}", style.upper()):  # some were in Unicode before the others
        try:
            element.text = unicodedata.lookup(f"{kind} CAPITAL {element.text}")
            return
        except KeyError:
            continue
    element.set("mathvariant", style)


def _align(table: ET.Element) -> None:
    """Align a table's columns by style, which MathML Core leaves to CSS; the columns of `aligned` touch."""
    touching = "; padding-left: 0; padding-right: 0" if table.get("displaystyle") == "true" else ""
    for cell in table.iter(f"{{{NAMESPACE}}}mtd"):
        if side := cell.attrib.pop("columnalign", None):
            cell.set("style", f"text-align: {side}{touching}")


def _mark_signs(row: ET.Element) -> None:
    """Mark a minus after another operator as a sign, which has no space after it."""
    children = list(row)
    for before, child in zip(children, children[1:], strict=False):
        if child.text in ("-", "\u2212") and _name(before) == "mo" and before.text not in CLOSING:
            child.set("form", "prefix")


def _space_functions(row: ET.Element) -> None:
    """Put a thin space before and after log p, as TeX does, but none before log(p)."""
    children = list(row)
    for number, child in reversed(list(enumerate(children))):
        if not _is_function(child):
            continue
        after = children[number + 1] if number + 1 < len(children) else None
        if after is not None and not _is_operator(after) and not _opens(after):
            row.insert(number + 1, ET.Element(f"{{{NAMESPACE}}}mspace", THIN))
        before = children[number - 1] if number else None
        if before is not None and _name(before) != "mspace" and (not _is_operator(before) or before.text in CLOSING):
            row.insert(number, ET.Element(f"{{{NAMESPACE}}}mspace", THIN))


def _is_function(element: ET.Element) -> bool:
    if _name(element) in ("msub", "msup", "msubsup", "munder") and len(element):
        return _is_function(element[0])
    return _name(element) == "mi" and element.text in FUNCTIONS


def _is_operator(element: ET.Element) -> bool:
    return _name(element) in ("mo", "mspace")


def _opens(element: ET.Element) -> bool:
    """Whether an element is a fence in its own row, such as that of \\left( and \\right); bars are set apart."""
    return _name(element) == "mrow" and len(element) > 0 and element[0].text in ("(", "[", "{")


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
