"""Frames of videos in the shards, as thumbnails inside the page.

The thumbnails are JPEG pictures in ``data:`` addresses, so that the page is a single file. A strip of fifteen
thumbnails takes about 20 kB.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.errors import UsageError
from signllm.storage import StorageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from signllm.data.shards.index import Split

THUMBNAIL_HEIGHT = 96
QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The decoded frames of a video, as the encoder read them.

    Attributes:
        frames: (T, H, W, 3) uint8, RGB.
    """

    frames: NDArray[np.uint8]

    @property
    def height(self) -> int:
        """Thumbnail height in pixels."""
        return THUMBNAIL_HEIGHT

    @property
    def width(self) -> int:
        """Thumbnail width in pixels, in the aspect ratio of the frames."""
        return max(8, round(THUMBNAIL_HEIGHT * self.frames.shape[2] / self.frames.shape[1]))

    def picture(self, numbers: Sequence[int], *, gap: int = 0) -> Image.Image:
        """Return frames side by side, ``gap`` white pixels apart; numbers past the end show the last one."""
        from PIL import Image

        step = self.width + gap
        picture = Image.new("RGB", (step * len(numbers) - gap, self.height), "white")
        for place, number in enumerate(numbers):
            frame = Image.fromarray(self.frames[min(number, len(self.frames) - 1)])
            picture.paste(
                frame.resize((self.width, self.height), Image.Resampling.LANCZOS), (place * step, 0)
            )
        return picture

    def strip(self, numbers: Sequence[int]) -> str:
        """Return frames side by side as a ``data:`` address of a JPEG picture."""
        buffer = io.BytesIO()
        self.picture(numbers).save(buffer, format="JPEG", quality=QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def load_videos(
    shards: Path | str | None,
    split: str,
    ids: Sequence[str],
    problems: list[str],
    *,
    most: int | None = None,
    fps: float | None = None,
) -> dict[str, VideoFrames]:
    """Decode the videos of some samples; those that cannot be read are omitted.

    Args:
        shards: folder or address of shards, or a mixture of them; None returns no videos.
        split: split of the samples.
        ids: original ids of the samples.
        problems: list to which an error message is appended if videos cannot be read.
        most: longer videos are subsampled to this many frames, as for the model (``data.max_frames``).
        fps: frame rate at which the model reads videos (``data.fps``); None keeps every frame.

    Returns:
        id → frames of the video.
    """
    if shards is None or not ids:
        return {}
    from signllm.data.loading.mixture import open_mixture

    try:
        samples = open_mixture(shards).split(split)
        places = {sample.id: place for place, sample in enumerate(samples.samples) if sample.id in set(ids)}
        return {
            name: load_video_frames(samples, places[name], most=most, fps=fps)
            for name in ids
            if name in places
        }
    except (UsageError, OSError, StorageError) as error:
        problems.append(f"video frames of {split}: {error}")
        return {}


def load_video_frames(
    split: Split, place: int, *, most: int | None = None, fps: float | None = None
) -> VideoFrames:
    """Decode the frames that the model reads of a video.

    Args:
        split: split of the video.
        place: index of the video in the split.
        most: largest number of frames; longer videos are subsampled.
        fps: frame rate at which the model reads videos; None keeps every frame.

    Raises:
        UsageError, StorageError: The video cannot be read.
    """
    from signllm.data.video.frame_rate import frame_numbers_to_read
    from signllm.data.video.stored_frames import decode_stored_frames

    frames_THWC = decode_stored_frames(split.read(place))
    return VideoFrames(
        frames=frames_THWC[frame_numbers_to_read(len(frames_THWC), split.samples[place].fps, fps, most)]
    )
