"""The pictures of a sample as they are stored in a shard: one ``mp4`` member, or numbered frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from signllm.data.video import VideoError, decode, decoded_runs

if TYPE_CHECKING:
    import numpy as np

_FRAME = re.compile(r"\d{4,}\.(png|jpe?g)")


def stored_frames(members: dict[str, bytes], *, size: int | None = None) -> np.ndarray:
    """Decode a sample's members to uint8 (T, H, W, 3); ``size`` as in :func:`~signllm.data.video.decode`.

    Raises:
        VideoError: no pictures among the members, or damaged ones.
    """
    return decode(_pictures(members), size=size)


def stored_runs(members: dict[str, bytes], *, size: int | None = None) -> Iterator[np.ndarray]:
    """Yield what :func:`stored_frames` returns as :func:`~signllm.data.video.decoded_runs` does."""
    return decoded_runs(_pictures(members), size=size)


def _pictures(members: dict[str, bytes]) -> bytes | list[bytes]:
    if "mp4" in members:
        return members["mp4"]
    frames = [members[name] for name in sorted(name for name in members if _FRAME.fullmatch(name))]
    if not frames:
        raise VideoError(f"no video and no frames among the members: {', '.join(sorted(members))}")
    return frames
