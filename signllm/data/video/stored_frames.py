"""Decoding the frames of a sample as a shard stores them: as one ``mp4`` member, or as numbered images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from signllm.data.video.decoding import VideoError, decode_chunks, decode_video

if TYPE_CHECKING:
    import numpy as np

_FRAME = re.compile(r"\d{4,}\.(png|jpe?g)")


def decode_stored_frames(members: dict[str, bytes], *, size: int | None = None) -> np.ndarray:
    """Decode the pictures among a sample's members to uint8 (T, H, W, 3).

    Args:
        members: the members of the sample, by extension.
        size: as in :func:`~signllm.data.video.decoding.decode_video`.

    Raises:
        VideoError: the members contain no video and no images, or damaged ones.
    """
    return decode_video(_select_pictures(members), size=size)


def decode_stored_chunks(members: dict[str, bytes], *, size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of :func:`decode_stored_frames` in chunks, as ``video.decode_chunks`` does."""
    return decode_chunks(_select_pictures(members), size=size)


def _select_pictures(members: dict[str, bytes]) -> bytes | list[bytes]:
    """Return the mp4 member of a sample, or its images in order."""
    if "mp4" in members:
        return members["mp4"]
    frames = [members[name] for name in sorted(name for name in members if _FRAME.fullmatch(name))]
    if not frames:
        raise VideoError(f"there is no video and no frame among the members: {', '.join(sorted(members))}")
    return frames
