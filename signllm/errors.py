"""The two exceptions that the command line reports without a traceback.

The command line prints a :class:`UsageError` and exits with code 2, and prints a :class:`RunFailedError` and
exits with code 1. Every other exception is a defect of this program: it exits with code 1 and a traceback. A
usage error is a ``ValueError``, so that users of the library can catch it without importing this module.
"""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in the user's input: a value, a file, or a combination of options.

    Args:
        what: one sentence that names the value and the limit that it breaks.
        where: file, line or option that the value came from.
        remedy: what the user should do about it.
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
    """A run cannot continue, for example because a rank died or the loss is not a number.

    Its message is complete without a traceback.
    """
