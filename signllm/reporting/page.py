"""The frame of all HTML pages: a single file without scripts or network access, and accessible tables."""

from __future__ import annotations

from collections.abc import Sequence

from signllm.reporting.markup import Markup, tag
from signllm.reporting.style import POLICY, STYLE


def build_page(title: str, *body: Markup, style: str = "") -> str:
    """Return a complete HTML page.

    Args:
        title: title of the window.
        body: elements of the page.
        style: additional style rules of this page.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE + style)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def table_with_row_names(head: Sequence[str], body: Sequence[Sequence[str]], label: str) -> Markup:
    """Return a table whose first column contains the names of the rows.

    It can be scrolled separately on narrow screens, also by keyboard. ``label`` is its name for screen
    readers.
    """
    names = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in body
    ]
    table = tag("table", tag("thead", names), tag("tbody", *lines), class_="named")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)
