"""Differing words are exactly those outside a common subsequence, for any content."""

from __future__ import annotations

import pytest

from signllm.reporting.markup import Markup, number, tag
from signllm.reporting.word_difference import compare_words, mark_words


def test_a_swapped_and_a_missing_word() -> None:
    hypothesis, reference = compare_words("heavy rain in the south", "Heavy rain falls in the north")
    assert [word for word, differs in hypothesis if differs] == ["south"]
    assert [word for word, differs in reference if differs] == ["falls", "north"]
    assert str(mark_words(reference, "ins")) == "Heavy rain <ins>falls</ins> in the <ins>north</ins> "


@pytest.mark.parametrize("text", ["", "a", "a b a b"])
def test_equal_sentences_do_not_differ(text: str) -> None:
    hypothesis, reference = compare_words(text, text.upper())
    assert not any(differs for _, differs in hypothesis + reference)
    hypothesis, reference = compare_words(text, "")
    assert all(differs for _, differs in hypothesis)
    assert reference == []


def test_text_is_escaped_and_markup_is_not() -> None:
    assert str(tag("p", "<b>", Markup("<i></i>"), title='"x"', hidden=True, id=None)) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;<i></i></p>'
    )
    assert "<script>" not in str(mark_words([("<script>", True), ("<script>", False)], "del"))
    assert tag("p", "\ud800").encode("utf-8")  # a lone surrogate cannot break the file


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00005, "5e-5"),
        (0.00123, "0.00123"),
        (3.14159, "3.14"),
        (512.4, "512"),
        (12345, "12\u202f345"),
        (2.5e7, "2.5e7"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
