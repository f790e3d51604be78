"""Differing words are exactly those outside a common subsequence, whatever they contain."""

from __future__ import annotations

import pytest

from signllm.evaluation.report.markup import Markup, number, tag
from signllm.evaluation.report.word_difference import differing, marked


def test_a_swapped_and_a_missing_word() -> None:
    ours, theirs = differing("heavy rain in the south", "Heavy rain falls in the north")
    assert [word for word, differs in ours if differs] == ["south"]
    assert [word for word, differs in theirs if differs] == ["falls", "north"]
    assert str(marked(theirs, "ins")) == "Heavy rain <ins>falls</ins> in the <ins>north</ins> "


@pytest.mark.parametrize("text", ["", "a", "a b a b"])
def test_equal_sentences_do_not_differ(text: str) -> None:
    ours, theirs = differing(text, text.upper())
    assert not any(differs for _, differs in ours + theirs)
    ours, theirs = differing(text, "")
    assert all(differs for _, differs in ours)
    assert theirs == []


def test_text_is_escaped_and_markup_is_not() -> None:
    assert str(tag("p", "<b>", Markup("<i></i>"), title='"x"', hidden=True, id=None)) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;<i></i></p>'
    )
    assert "<script>" not in str(marked([("<script>", True), ("<script>", False)], "del"))
    assert tag("p", "\ud800").encode("utf-8")  # a lone surrogate cannot break the file


@pytest.mark.parametrize(
    ("value", "shown"),
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
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown
