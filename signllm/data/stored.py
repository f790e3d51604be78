"""The pictures of a sample as they are stored in a shard: one ``mp4`` member, or numbered frames."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from signllm.data.video import VideoError, decode

if TYPE_CHECKING:
    import numpy as np

_FRAME = re.compile(r"\d{4,}\.(png|jpe?g)")


def stored_frames(members: dict[str, bytes], *, size: int | None = None) -> np.ndarray:
    """Decode a sample's members to uint8 (T, H, W, 3); ``size`` as in :func:`~signllm.data.video.decode`.

    Raises:
        VideoError: no pictures among the members, or damaged ones.
    """
    if "mp4" in members:
        return decode(members["mp4"], size=size)
    frames = [members[name] for name in sorted(name for name in members if _FRAME.fullmatch(name))]
    if not frames:
        raise VideoError(f"no video and no frames among the members: {', '.join(sorted(members))}")
    return decode(frames, size=size)
