"""Differing words are exactly those outside a common subsequence, for any content."""

from __future__ import annotations

import pytest

from signllm.reporting.charts import number
from signllm.reporting.pages import render_page
from signllm.reporting.word_difference import compare_words


def test_a_swapped_and_a_missing_word() -> None:
    hypothesis, reference = compare_words("heavy rain in the south", "Heavy rain falls in the north")
    assert [word for word, differs in hypothesis if differs] == ["south"]
    assert [word for word, differs in reference if differs] == ["falls", "north"]
    assert reference[2:4] == [("falls", True), ("in", False)]


def test_consecutive_words_that_differ_are_one_part() -> None:
    hypothesis, _ = compare_words("a b c d", "a d")
    assert hypothesis == [("a", False), ("b c", True), ("d", False)]


@pytest.mark.parametrize("text", ["", "a", "a b a b"])
def test_equal_sentences_do_not_differ(text: str) -> None:
    hypothesis, reference = compare_words(text, text.upper())
    assert not any(differs for _, differs in hypothesis + reference)
    hypothesis, reference = compare_words(text, "")
    assert all(differs for _, differs in hypothesis)
    assert reference == []


def test_text_is_escaped_and_a_lone_surrogate_cannot_break_the_file() -> None:
    head, rows = ["<b>", '"x"'], [["<script>", "\ud800"]]
    page = render_page(
        "ablations.html", title="</title>", head=head, rows=rows, notes=["<i>"], figure="<svg>"
    )
    for raw in ("<b>", "<script>", "<i>", "<svg>", "<title></title>", "\ud800"):
        assert raw not in page
    assert page.encode("utf-8")
    assert "&lt;script&gt;" in page


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
