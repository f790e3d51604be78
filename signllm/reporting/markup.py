"""HTML that its content cannot break: text is escaped unless it was built by :func:`tag`.

Translations, ids and settings come from files and models, and may contain ``<script>``. A template engine
would do as well, but this function of twenty lines needs no dependency, and escaping is the default.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "img", "br"})


class Markup(str):
    """A string that contains HTML; every other object is text and will be escaped."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an HTML element.

    Args:
        name: name of the element; it must not come from a user.
        children: :class:`Markup` is inserted unchanged, ``None`` is omitted, anything else is escaped.
        attributes: attributes with escaped values. ``class_`` means ``class``, ``stroke_width`` means
            ``stroke-width``; ``True`` gives an attribute without a value, ``None`` and ``False`` none.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(_text(value), quote=True)}"')
    parts.append(">")
    if name not in VOID:
        parts += [join_markup(children), f"</{name}>"]
    return Markup("".join(parts))


def join_markup(children: Iterable[object]) -> Markup:
    """Return children one after the other; those that are not :class:`Markup` are escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(_text(child), quote=False)
            for child in children
            if child is not None
        )
    )


def number(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits, without an exponent between 0.001 and a million."""
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else f"{value:.0f}"
    return f"{value:.{digits}g}"


def _text(value: object) -> str:
    """Return a value as text: floats are shortened, lone surrogates (broken input) are replaced."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")
