"""The one error of all that reads pictures, apart so that frame folders and videos can both raise it."""

from __future__ import annotations

from signllm.errors import UsageError


class VideoError(UsageError):
    """A video or a frame that cannot be used: damaged, empty, or beyond the limits."""
