"""The one way to tell a user about a mistake: what happened, where, and what to do.

The command line prints a :class:`UsageError` as it is and leaves with exit code 2, a :class:`RunFailedError`
with 1; everything else that is raised is our own fault and leaves with 1 and a traceback. A usage error is a
``ValueError``, so library users need not know it.
"""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in what the user gave us: a value, a file, a combination.

    Args:
        what: one sentence, with the value and the limit it broke.
        where: the file, line or option it came from.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: object | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what]
        if where is not None:
            lines.append(f"  where:  {where}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


class RunFailedError(RuntimeError):
    """A run could not go on, and its message says all there is to say: a rank died, a loss is no number."""
