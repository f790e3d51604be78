"""Which library decodes videos at their own size: PyAV, or torchcodec where it gives the very same pictures.

torchcodec is taken if it is installed and agrees with PyAV, frame by frame and bit by bit, on clips drawn
here; what it cannot read whole, PyAV reads or refuses. Pictures that are scaled while they are decoded, as
for training, are PyAV's alone: torchcodec scales what it has turned into RGB, ours are scaled as they are
coded (``pictures.py``), which gives other pictures and is faster (``tools/bench_pipeline`` shows both where
torchcodec loads).
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
"""Environment variable that demands ``pyav`` or ``torchcodec``; read once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderChoice:
    """A decoder and the reason for it, fit to be read by a user."""

    decoder: Literal["pyav", "torchcodec"]
    why: str


@functools.cache
def choose_decoder() -> DecoderChoice:
    """Return what decodes videos at their own size on this machine; told once in the log.

    Raises:
        UsageError: torchcodec is demanded and cannot be used, or something else is demanded.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "pyav", "torchcodec"):
        raise UsageError(
            f"{VARIABLE}={wanted}", where="environment", remedy="pyav or torchcodec, or unset it"
        )
    problem = f"{VARIABLE}=pyav" if wanted == "pyav" else find_torchcodec_problem()
    if problem and wanted == "torchcodec":
        raise UsageError(
            f"{VARIABLE}=torchcodec: {problem}",
            where="environment",
            remedy="unset it, or install a torchcodec that fits this torch and has FFmpeg's libraries",
        )
    if problem:
        choice = DecoderChoice("pyav", problem)
    else:
        choice = DecoderChoice("torchcodec", "its pictures equal PyAV's, frame by frame")
    _log.info("videos of their own size are decoded by %s: %s", choice.decoder, choice.why)
    return choice


def find_torchcodec_problem() -> str:
    """Say why torchcodec cannot stand in for PyAV; nothing if it can."""
    import numpy as np

    from signllm.data.video import decode_by_pyav

    for name, clip in _make_probe_videos().items():
        try:
            theirs = _read_by_torchcodec(clip)
        except ImportError:
            return "torchcodec is not installed"
        except (OSError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            told = (str(error).splitlines() or [""])[0]
            return f"torchcodec does not work: {type(error).__name__}: {told[:100]}"
        if theirs is None or not np.array_equal(theirs, decode_by_pyav(clip)):
            return f"torchcodec's pictures differ from PyAV's ({name})"
    return ""


def decode_by_torchcodec(source: bytes | Path) -> np.ndarray | None:
    """Decode a video at its own size by torchcodec, if that is chosen; None leaves it to PyAV.

    Returns:
        uint8 (T, H, W, 3), if the video is within the limits of ``pictures.py`` and all there, and shown as
        it is coded: whether torchcodec heeds what a file asks for differs from version to version.
    """
    if choose_decoder().decoder == "pyav":
        return None
    try:
        return _read_by_torchcodec(source) if is_shown_as_coded(source) else None
    except (OSError, RuntimeError, ValueError, VideoError):
        return None  # PyAV has the named error, or reads it nevertheless


def _read_by_torchcodec(source: bytes | Path) -> np.ndarray | None:
    from torchcodec.decoders import VideoDecoder

    from signllm.data.pictures import check_size, check_total

    video = VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)
    about, count = video.metadata, len(video)
    check_size(about.width, about.height)
    check_total(count, about.width, about.height)
    if count == 0 or about.num_frames_from_header not in (None, count):
        return None
    frames_THWC: np.ndarray = video.get_frames_in_range(0, count).data.numpy()
    return frames_THWC


def _make_probe_videos() -> dict[str, bytes]:
    """Draw the clips on which the two are compared: sizes, rates, containers in which they could differ."""
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
