"""The exception of all modules that read frames, defined here so that each of them can import it."""

from __future__ import annotations

from signllm.errors import UsageError


class VideoError(UsageError):
    """A video or a frame cannot be used because it is damaged, empty, or exceeds a limit."""
