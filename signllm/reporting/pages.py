"""HTML pages from the templates in ``templates/``.

Translations, ids and settings come from files and models, and may contain ``<script>``: Jinja escapes every
value that is not :class:`~markupsafe.Markup`.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from signllm.reporting.timeline import Timeline, code_colour


def render_page(template: str, **values: object) -> str:
    """Return the page that a template draws from values, without lone surrogates (broken input)."""
    page = environment().get_template(template).render(values)
    return page.encode("utf-8", "replace").decode("utf-8")


def render_timeline(timeline: Timeline) -> Markup:
    """Return the drawing of a token timeline by itself; its style is that of :func:`timeline_style`."""
    return Markup(environment().get_template("timeline.html").module.draw(timeline))  # type: ignore[attr-defined]


def timeline_style() -> str:
    """Return the style sheet of timelines; it uses the variables ``--ink`` and ``--soft``."""
    return environment().get_template("timeline.css").render()


@cache
def environment(package: str = "signllm.reporting") -> Environment:
    """Return the environment of the templates of a package."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shorten,
    )
    environment.filters["code_colour"] = code_colour
    return environment


def _shorten(value: object) -> object:
    """Return floats with six significant digits, and nothing for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
