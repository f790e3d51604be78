"""One finding of ``signllm doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "absent", "wrong"]

MARKS: Mapping[State, str] = {"ok": "ok", "absent": "--", "wrong": "!!"}
"""Marks that differ without color: it works; it is absent, which may be fine; it needs repair."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about this machine.

    Attributes:
        group: ``machine``, ``torch``, ``packages``, ``operators`` or ``cluster``.
        name: name, unique within the group.
        state: whether it works.
        description: what was found, as text.
        remedy: what to do if it does not work.
        facts: what was found, as JSON values.
    """

    group: str
    name: str
    state: State = "ok"
    description: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The finding as one line, with the remedy at the end."""
        remedy = f" (remedy: {self.remedy})" if self.remedy else ""
        return f"  {MARKS[self.state]}  {self.name:<22}{self.description}{remedy}"
