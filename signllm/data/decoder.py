"""Choice of the library that decodes videos at their own size: PyAV, or torchcodec if it is identical.

torchcodec is used if it is installed and its frames equal PyAV's, bit by bit, on videos that are generated
here. A video that it cannot read completely is left to PyAV. Frames that are scaled while they are decoded,
as for training, always come from PyAV: torchcodec scales frames after their conversion to RGB, whereas
``pictures.py`` scales them before it, which gives other values and is faster (``tools/bench_pipeline``
measures both where torchcodec loads).
"""

from __future__ import annotations

import functools
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from signllm.data.stream import is_shown_as_coded
from signllm.data.video_error import VideoError
from signllm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "SIGNLLM_DECODER"
"""Environment variable that prescribes ``pyav`` or ``torchcodec``; it is read once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderChoice:
    """A decoder and the reason for its choice, as words for the user."""

    decoder: Literal["pyav", "torchcodec"]
    reason: str


@functools.cache
def choose_decoder() -> DecoderChoice:
    """Return the decoder of videos at their own size on this machine, and log it once.

    Raises:
        UsageError: the environment variable prescribes torchcodec, which cannot be used, or an unknown value.
    """
    prescribed = os.environ.get(VARIABLE, "")
    if prescribed not in ("", "pyav", "torchcodec"):
        raise UsageError(
            f"{VARIABLE}={prescribed} is not a decoder",
            where="environment",
            remedy="set it to pyav or torchcodec, or unset it",
        )
    problem = f"{VARIABLE}=pyav" if prescribed == "pyav" else find_torchcodec_problem()
    if problem and prescribed == "torchcodec":
        raise UsageError(
            f"{VARIABLE}=torchcodec: {problem}",
            where="environment",
            remedy="unset it, or install a torchcodec that matches this torch and finds FFmpeg's libraries",
        )
    if problem:
        choice = DecoderChoice("pyav", problem)
    else:
        choice = DecoderChoice("torchcodec", "its frames equal PyAV's")
    _log.info("videos at their own size are decoded by %s: %s", choice.decoder, choice.reason)
    return choice


def find_torchcodec_problem() -> str:
    """Return the reason why torchcodec cannot replace PyAV, "" if it can."""
    import numpy as np

    from signllm.data.video import decode_by_pyav

    for name, video in _make_probe_videos().items():
        try:
            frames_THWC = _read_by_torchcodec(video)
        except ImportError:
            return "torchcodec is not installed"
        except (OSError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            return f"torchcodec does not work: {type(error).__name__}: {first_line[:100]}"
        if frames_THWC is None or not np.array_equal(frames_THWC, decode_by_pyav(video)):
            return f"torchcodec's frames differ from PyAV's ({name})"
    return ""


def decode_by_torchcodec(source: bytes | Path) -> np.ndarray | None:
    """Decode a video at its own size by torchcodec, if it is the chosen decoder.

    Returns:
        uint8 (T, H, W, 3), or None if PyAV must decode the video: it is beyond the limits of ``pictures.py``,
        incomplete, or has a rotation, an aspect ratio or an edit list, which some versions of torchcodec
        ignore.
    """
    if choose_decoder().decoder == "pyav":
        return None
    try:
        return _read_by_torchcodec(source) if is_shown_as_coded(source) else None
    except (OSError, RuntimeError, ValueError, VideoError):
        return None  # PyAV raises the error with a better message, or can read the video


def _read_by_torchcodec(source: bytes | Path) -> np.ndarray | None:
    """Decode a video by torchcodec; return None if it is incomplete."""
    from torchcodec.decoders import VideoDecoder

    from signllm.data.pictures import check_size, check_total

    video = VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)
    metadata, count = video.metadata, len(video)
    check_size(metadata.width, metadata.height)
    check_total(count, metadata.width, metadata.height)
    if count == 0 or metadata.num_frames_from_header not in (None, count):
        return None
    frames_THWC: np.ndarray = video.get_frames_in_range(0, count).data.numpy()
    return frames_THWC


def _make_probe_videos() -> dict[str, bytes]:
    """Return random videos of sizes, rates and containers in which the two decoders could differ, by name."""
    import numpy as np
    from PIL import Image

    from signllm.data.h264 import encode_h264

    pictures_THWC = np.random.default_rng(0).integers(0, 255, (7, 9, 12, 3), np.uint8)
    large_THWC = pictures_THWC.repeat(8, 1).repeat(8, 2)
    first, *rest = [Image.fromarray(picture) for picture in large_THWC]
    gif = io.BytesIO()
    first.save(gif, format="GIF", save_all=True, append_images=rest, duration=[40, 120, 40, 80, 40, 40, 40])
    return {
        "h264": encode_h264(large_THWC, 25),
        "h264 of an odd rate": encode_h264(large_THWC[:, :-6, :-2], 30000 / 1001),
        "gif": gif.getvalue(),
    }
