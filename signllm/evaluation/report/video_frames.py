"""Thumbnails of a sample's video out of the shards, as pictures inside the page.

Pictures are JPEG in ``data:`` addresses: the page stays one file, and a strip of fifteen thumbnails costs
about 20 kB.
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

    from signllm.data.index import Split

THUMBNAIL_HEIGHT = 96
QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The decoded frames of a video.

    Attributes:
        frames: (T, H, W, 3), uint8.
    """

    frames: NDArray[np.uint8]

    @property
    def height(self) -> int:
        """Thumbnail height in pixels."""
        return THUMBNAIL_HEIGHT

    @property
    def width(self) -> int:
        """Thumbnail width in pixels, of the frames' own aspect."""
        return max(8, round(THUMBNAIL_HEIGHT * self.frames.shape[2] / self.frames.shape[1]))

    def picture(self, numbers: Sequence[int], *, gap: int = 0) -> Image.Image:
        """Return these frames side by side, ``gap`` white pixels apart; past the end the last one stands."""
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
        """Return a ``data:`` address of that picture."""
        written = io.BytesIO()
        self.picture(numbers).save(written, format="JPEG", quality=QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def films(
    shards: Path | str | None,
    split: str,
    ids: Sequence[str],
    problems: list[str],
    *,
    most: int | None = None,
    fps: float | None = None,
) -> dict[str, VideoFrames]:
    """Decode the videos of some samples; what cannot be had is said in ``problems`` and left out.

    Args:
        shards: folder or address of shards, or a mixture of them, or None.
        split: the split that holds the samples.
        ids: original names of the samples.
        problems: gets one line for each thing that went wrong.
        most: longer videos are thinned to this many frames, as the model read them (``data.max_frames``).
        fps: rate at which the model read them (``data.fps``); None: every frame.
    """
    if shards is None or not ids:
        return {}
    from signllm.data.mixture import open_mixture

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
    """Decode the ``place``-th video of a split: the frames that the model read of it.

    Raises:
        UsageError, StorageError: it cannot be read.
    """
    from signllm.data.frame_rate import frame_numbers_to_read
    from signllm.data.stored_frames import decode_stored_frames

    frames_THWC = decode_stored_frames(split.read(place))
    return VideoFrames(
        frames=frames_THWC[frame_numbers_to_read(len(frames_THWC), split.samples[place].fps, fps, most)]
    )
