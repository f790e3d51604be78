"""HTML that cannot be broken by what it shows: text is escaped unless it was built by :func:`tag`.

Translations, ids and settings come from files and models and may hold ``<script>``. A template engine would
do, but one function of twenty lines needs no dependency and makes escaping the default instead of a filter to
remember.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "img", "br"})


class Markup(str):
    """A string that is HTML already; every other object is text, to be escaped."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: the element's name; ours, never the user's.
        children: :class:`Markup` goes in as it is, anything else as escaped text, ``None`` not at all.
        attributes: values are escaped; ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``;
            ``True`` is a bare attribute, ``None`` and ``False`` none.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(_text(value), quote=True)}"')
    parts.append(">")
    if name not in VOID:
        parts += [joined(children), f"</{name}>"]
    return Markup("".join(parts))


def joined(children: Iterable[object]) -> Markup:
    """Return children one after the other, text among them escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(_text(child), quote=False)
            for child in children
            if child is not None
        )
    )


def number(value: float, digits: int = 3) -> str:
    """Return a number to read: three significant digits, no exponent between 0.001 and a million."""
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else f"{value:.0f}"
    return f"{value:.{digits}g}"


def _text(value: object) -> str:
    """Return a value as text: floats short, lone surrogates (broken input) replaced."""
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown.encode("utf-8", "replace").decode("utf-8")
