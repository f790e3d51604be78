"""One line of what ``signllm doctor`` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "absent", "wrong"]

MARKS: Mapping[State, str] = {"ok": "ok", "absent": "--", "wrong": "!!"}
"""Told apart without colour: works; not here, and not everybody needs it; must be repaired."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something of this machine and how it is.

    Attributes:
        group: ``machine``, ``torch``, ``packages``, ``operators`` or ``cluster``.
        name: unique within the group.
        state: whether it works.
        description: what is there, for a reader.
        remedy: what to do where it does not work.
        facts: the same for programs.
    """

    group: str
    name: str
    state: State = "ok"
    description: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The finding as one line; the remedy stands behind it."""
        remedy = f" (remedy: {self.remedy})" if self.remedy else ""
        return f"  {MARKS[self.state]}  {self.name:<22}{self.description}{remedy}"
