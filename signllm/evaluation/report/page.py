"""What all our pages have in common: one file, no script, nothing fetched; tables that can be heard."""

from __future__ import annotations

from collections.abc import Sequence

from signllm.evaluation.report.markup import Markup, tag
from signllm.evaluation.report.style import POLICY, STYLE


def page(title: str, *body: Markup, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: of the window.
        body: what stands in it.
        style: rules of its own, behind those of all pages.
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


def named_rows(head: Sequence[str], body: Sequence[Sequence[str]], label: str) -> Markup:
    """Return a table whose first column names the rows; it scrolls by itself on a phone, by keyboard too."""
    names = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in body
    ]
    table = tag("table", tag("thead", names), tag("tbody", *lines), class_="named")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)
