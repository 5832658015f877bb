"""Formulas as MathML: styled letters, bars, signs, spaces and columns."""

import re

from loglik.report.mathml import mathml


def texts(latex: str) -> list[str]:
    return re.findall(r">([^<>]+)<", mathml(latex))


def test_styled_letters_are_characters_of_their_own():
    assert texts(r"\mathbb E \mathcal L \mathbb{R} \mathcal{N}") == ["𝔼", "ℒ", "ℝ", "𝒩"]
    assert "mathvariant" not in mathml(r"\mathbb E \mathcal L")


def test_functions_have_a_thin_space_and_relations_are_operators():
    assert "mspace" in mathml(r"\log p") and "mspace" not in mathml(r"\log(p)")
    assert "<mo>∼</mo>" in mathml(r"x \sim p")


def test_a_minus_after_an_operator_is_a_sign():
    assert 'form="prefix"' in mathml(r"a = -b") and 'form="prefix"' not in mathml("a - b")


def test_aligned_rows_are_a_table_without_ampersands():
    found = mathml(r"\begin{aligned} a &= b \\ &= c \end{aligned}")
    assert found.count("<mtr>") == 2 and "&amp;" not in found and "columnalign=" not in found


def test_display_is_chosen():
    assert 'display="inline"' in mathml("x", "inline") and 'display="block"' in mathml("x")
